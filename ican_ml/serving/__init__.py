"""Torch-free prediction from a bundle."""
