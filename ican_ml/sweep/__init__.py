"""Hyperparameter sweeps: trials of a study, asked for and told by any number of workers, killed ones among them."""
