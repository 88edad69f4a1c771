"""Batches of encoded patients with their outcomes, in an order that depends on seed and epoch alone.

The loader keeps its own position, so that a run stopped in mid-epoch goes on with the very next batch. Of several
processes each gets its share of every batch, every patient in one of them, and the weight of all episodes of the batch
over the number of processes: their losses then average to that of the whole batch. A process without a share gets a
patient that counts for nothing.
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
PATIENTS, TOKENS = "n_patients", "n_tokens"  # of the whole batch, of all processes; of this process


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
    """Iterate over patients in batches; shuffled anew each epoch when ``seed`` is given. Stateful for resuming.

    Parameters
    ----------
    batch_size
        Patients of a batch, of all processes together.
    bucket
        Batches whose patients are sorted by their number of tokens among one another, so that each is padded less; 1 =
        none. Which patients meet in a batch, and the order of the batches, stays drawn.
    rank, size
        Which of how many processes this is.
    """

    def __init__(
        self,
        data: PatientData,
        *,
        batch_size: int,
        seed: int | None = None,
        bucket: int = 1,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.bucket = bucket
        self.rank, self.size = rank, size
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
            yield self._share(order[start : start + self.batch_size])

    def _order(self) -> Int64:
        if self.seed is None:
            return self.data.rows
        draw = np.random.default_rng([self.seed, self.epoch])
        order: Int64 = draw.permutation(self.data.rows)
        if self.bucket == 1:
            return order
        tokens = self.data.encoded.n_tokens()
        pool = self.bucket * self.batch_size
        pools = [order[start : start + pool] for start in range(0, len(order), pool)]
        order = np.concatenate([each[np.argsort(tokens[each], kind="stable")] for each in pools])
        whole = len(order) // self.batch_size
        batches = order[: whole * self.batch_size].reshape(whole, self.batch_size)
        return np.concatenate([draw.permutation(batches).ravel(), order[whole * self.batch_size :]])

    def _share(self, rows: Int64) -> Batch:
        if self.size == 1:
            batch = self.data.batch(rows)
        else:
            own = rows[self.rank :: self.size]
            batch = self.data.batch(own if len(own) else rows[:1])
            for name in [name for name in self.data.outcomes if name.endswith("_weight")]:
                weight = self.data.outcomes[name][rows]
                total = float((weight.max(-1) if weight.ndim == 3 else weight).sum(dtype=np.float64))
                batch[name.removesuffix("weight") + "episodes"] = torch.tensor(max(total, 1.0) / self.size)
                if not len(own):
                    batch[name] = torch.zeros_like(batch[name])
        masks = [(batch[name] > 0).sum() for name in batch if name.endswith("_tokens") or name == "event_code"]
        return batch | {PATIENTS: torch.tensor(len(rows)), TOKENS: torch.stack(masks).sum()}

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position of the next batch."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.epoch, self.position = state["epoch"], state["position"]
