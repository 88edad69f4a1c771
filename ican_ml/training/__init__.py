"""Fitting the network: outcomes, losses, the linear warm start, the Lightning module and its loop."""
