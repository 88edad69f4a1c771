"""Longitudinal records: the event store, the code vocabulary with its back-off rules, and summary columns."""
