"""How hard the machine works: peak memory, the model's floating point operations, their share of what a GPU can do.

Model FLOP utilisation (Chowdhery et al. 2022, arXiv:2204.02311): the operations that a step's arithmetic needs, three
times those of its forward pass, over the time it took and the peak of the device. Only matrix products are counted.
"""

from __future__ import annotations

import resource
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.training.data import TOKENS, Batch

# Dense peak of matrix products in bfloat16, and of float32 without TF32 (vendor's data sheets).
_PEAKS = {"A100": (312e12, 19.5e12), "H100": (989e12, 67e12), "H200": (989e12, 67e12)}


def peak_memory() -> int:
    """Bytes: the most that the GPU, or without one this process, has held so far."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def flops_per_token(network: PatientTransformer, batch: Batch) -> float:
    """Operations of one step for each token of a batch; draws nothing of the random generators."""
    devices = [torch.cuda.current_device()] if batch["summary"].is_cuda else []
    counter = _Flops()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices), torch.no_grad(), counter:
        network.member_outputs(batch)
    return 3.0 * counter.total / max(1, int(batch[TOKENS]))


class _Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of what runs within.

    Torch's own `FlopCounterMode` also follows modules, and fails at one that is handed a parameter under ``no_grad``.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def device_peak(precision: str, device: torch.device) -> float | None:
    """Operations a second that this device can do at most; None for a CPU, and for a GPU that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = next((peaks for model, peaks in _PEAKS.items() if model in name), None)
    return None if known is None else known[0 if precision.startswith("bf16") else 1]
