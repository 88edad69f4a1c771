"""A cohort on disk: its format, reading and validation, what was known when, and splits by subject."""
