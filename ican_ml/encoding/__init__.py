"""Sparse omics to tokens and embeddings. One module an operator; its docstring fixes what every backend keeps.

`csr` (the data), `stored` (on disk), the operators `normalize_log1p`, `feature_stats`, `rank_tokens`, `bin_values`,
`pad_ragged`, `bag`, `lookup` (NumPy in and out) and `csr_bag` (torch, differentiable). A row's result depends on that
row alone, so a patient gets the same answer alone as in a batch, on any number of threads. Across backends integer
outputs are equal bit for bit; float outputs lie within twice the error that plain float32 has against float64.

Three backends keep one contract: `reference` (NumPy, the oracle and the single-patient serving path), `cpu` (Numba)
and `cuda` (CuPy, `kernels/`). `backend="auto"` goes where the data lies: batches on a device
(`CSRBatch.to_device`) stay there; `"cuda"` takes host memory to the device and back. Naming one that cannot run raises
`BackendUnavailable`. Import the modules by name: this package itself loads nothing.
"""
