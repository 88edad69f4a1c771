"""Patients to network inputs: one torch-free path that training and serving share."""
