"""Batches of encoded patients with their outcomes, in an order that depends on seed and epoch alone.

The loader keeps its own position, so that a run stopped in mid-epoch goes on with the very next batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ican_ml.inputs.encode import EncodedPatients, Int64, collate
from ican_ml.training.outcomes import Arrays, Float32

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class PatientData:
    """Some patients with their outcomes.

    Attributes
    ----------
    encoded
        All patients, N of them.
    outcomes
        Loss arrays ``[N, R(, K)]``.
    rows
        int64: the patients in question.
    """

    encoded: EncodedPatients
    outcomes: Arrays
    rows: Int64

    @property
    def shape(self) -> tuple[int, int]:
        """Patients and the most regimens of any of them, N and R."""
        weights = (values for name, values in self.outcomes.items() if name.endswith("_weight"))
        n_patients, n_slots = next((values.shape[:2] for values in weights), (0, 0))
        return n_patients, n_slots

    def with_scores(self, **scores: Float32) -> PatientData:
        """Scores [N, (R,) tasks] of an earlier path among the arrays, for the paths after it."""
        return replace(self, outcomes={**self.outcomes, **scores})

    def of_episodes(self, patient: Int64, slot: Int64) -> PatientData:
        """Only the given episodes: their patients, and no other episode's outcome (its weight becomes 0)."""
        chosen = np.zeros(self.shape, np.float32)
        chosen[patient, slot] = 1
        kept = {
            name: values * (chosen if values.ndim == 2 else chosen[..., None]) if name.endswith("_weight") else values
            for name, values in self.outcomes.items()
        }
        return PatientData(encoded=self.encoded, outcomes=kept, rows=np.unique(patient))

    def batch(self, rows: Int64) -> Batch:
        """The chosen patients as tensors: network inputs and loss arrays."""
        arrays = collate(self.encoded, rows) | {name: values[rows] for name, values in self.outcomes.items()}
        return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}


class PatientLoader:
    """Iterate over patients in batches; shuffled anew each epoch when ``seed`` is given. Stateful for resuming."""

    def __init__(self, data: PatientData, *, batch_size: int, seed: int | None = None) -> None:
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        return -(-len(self.data.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self.position == len(self):
            self.epoch, self.position = self.epoch + 1, 0
        order = self._order()
        while self.position < len(self):
            start = self.position * self.batch_size
            self.position += 1
            yield self.data.batch(order[start : start + self.batch_size])

    def _order(self) -> Int64:
        if self.seed is None:
            return self.data.rows
        order: Int64 = np.random.default_rng([self.seed, self.epoch]).permutation(self.data.rows)
        return order

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position of the next batch."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.epoch, self.position = state["epoch"], state["position"]
