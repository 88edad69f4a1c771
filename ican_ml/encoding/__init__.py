"""Sparse omics to tokens and embeddings: `csr` (the data), `operators` (NumPy in and out), `bag` (torch).

Three backends keep one contract: `reference` (NumPy, the oracle and the single-patient serving path),
`cpu` (Numba) and `cuda` (a seam for now). Import the modules by name: this package itself loads nothing.
"""
