"""Metrics, intervals, baselines and the run report, on plain NumPy arrays."""
