"""Batches of encoded patients with their outcomes, in an order that depends on seed and epoch alone.

The loader keeps its own position, so that a run stopped in mid-epoch goes on with the very next batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ican_ml.inputs.encode import EncodedPatients, Int64, collate
from ican_ml.training.outcomes import Arrays

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class PatientData:
    """Encoded patients, and the loss arrays ``[N, R(, K)]`` beside them."""

    encoded: EncodedPatients
    outcomes: Arrays

    def batch(self, rows: Int64) -> Batch:
        """The chosen patients as tensors: network inputs and loss arrays."""
        inputs = collate(self.encoded, rows)
        arrays = inputs | {name: values[rows] for name, values in self.outcomes.items()}
        return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}


class PatientLoader:
    """Iterate over chosen patients in batches; shuffled anew each epoch when ``seed`` is given. Stateful for resuming."""

    def __init__(self, data: PatientData, rows: Int64, *, batch_size: int, seed: int | None = None) -> None:
        self.data = data
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = self._order()
        while self.position < len(self):
            start = self.position * self.batch_size
            self.position += 1
            yield self.data.batch(order[start : start + self.batch_size])
        self.position = 0
        self.epoch += 1

    def _order(self) -> Int64:
        if self.seed is None:
            return self.rows
        order: Int64 = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        return order

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position of the next batch."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.epoch, self.position = state["epoch"], state["position"]
