"""Which gene is worth drugging next, and which markers tell responders apart: independent lines of evidence."""
