"""The CUDA backend's place: it will load the sources in `kernels/` through CuPy on torch's current stream.

Until those kernels exist `available()` is False, `backend="auto"` passes this backend by, and asking for it by
name raises `BackendUnavailable`. A backend that runs adds the functions of `backends.EncodingBackend` here.
"""

from __future__ import annotations


def available() -> bool:
    """Whether the operators can run on a CUDA device here."""
    return False


def why_unavailable() -> str:
    """One sentence for the user who asked for this backend."""
    return "the cuda backend has no kernels in this version; use backend='auto', 'cpu' or 'reference'"
