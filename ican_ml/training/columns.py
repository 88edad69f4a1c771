"""Fit the columns path: AdamW with one cycle of the learning rate (Smith 2018, arXiv:1708.07120), by itself.

The number of passes is fixed (more for few patients), so no tuning patients are needed to stop. The weights of single
columns, which start at 1, learn faster than the rest and do not decay.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from ican_ml.model.columns import Columns
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.training.data import PatientData
from ican_ml.training.losses import total_loss
from ican_ml.training.outcomes import log_odds
from ican_ml.training.trees import tree_values

_log = logging.getLogger(__name__)
_EPOCHS, _FEWEST_STEPS, _BATCH = 4, 100, 256
_RATE, _WEIGHT_RATE = 3e-3, 30.0
_DECAY, _CLIP = 0.1, 1.0


def fit_columns(network: PatientTransformer, *parts: PatientData, seed: int) -> None:
    """Fit ``network.columns`` in place on the patients of all parts together; each member under its own seed."""
    columns = network.columns
    assert columns is not None
    network.eval()
    found = [tree_values(network, part) for part in parts]
    values = torch.from_numpy(np.concatenate([part.values for part in found]))
    category = torch.from_numpy(np.concatenate([part.group for part in found]))
    outcome = {
        name: torch.from_numpy(np.concatenate([part.outcome(name) for part in found])[:, None])
        for name in parts[0].outcomes
        if name.endswith(("_target", "_weight"))
    }
    columns.set_scale(values)
    seen = columns.scaled(values)[:, None]
    start = _start(network, outcome)
    with torch.random.fork_rng(devices=[]), tqdm(total=len(columns.members), desc="columns", disable=None) as bar:
        for e, member in enumerate(columns.members):
            assert isinstance(member, Columns)
            torch.manual_seed(seed + e)
            member.reset(start)
            _fit(network, member.train().requires_grad_(True), seen, category[:, None], outcome)
            member.eval().requires_grad_(False)
            bar.update()
    times = f", {len(columns.members)} times" if len(columns.members) > 1 else ""
    _log.info("columns path fitted on %d episodes%s", len(values), times)


def _fit(
    network: PatientTransformer, member: Columns, seen: Tensor, category: Tensor, outcome: dict[str, Tensor]
) -> None:
    weights = [member.weight]
    rest = [parameter for name, parameter in member.named_parameters() if name != "weight"]
    optimiser = torch.optim.AdamW(
        [{"params": rest, "weight_decay": _DECAY}, {"params": weights, "weight_decay": 0.0}], lr=_RATE
    )
    n_batches = -(-len(seen) // _BATCH)
    epochs = max(_EPOCHS, -(-_FEWEST_STEPS // n_batches))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [_RATE, _RATE * _WEIGHT_RATE], total_steps=epochs * n_batches + 1, pct_start=0.2
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(seen)).chunk(n_batches):
            outputs = network.finished(member(seen[rows], category[rows]))
            loss = total_loss(network.tasks, outputs, {name: values[rows] for name, values in outcome.items()})
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(member.parameters(), _CLIP)
            optimiser.step()
            schedule.step()


def _start(network: PatientTransformer, outcome: dict[str, Tensor]) -> dict[str, Tensor]:
    """By task, what to say before anything is learned: the log odds of all (by interval); 0 = the mean."""
    start = {}
    for task in network.tasks:
        target, weight = (outcome[f"{task.name}_{part}"][:, 0].numpy() for part in ("target", "weight"))
        odds = np.zeros(2, np.float32) if task.kind == "regression" else log_odds(target, weight)
        start[task.name] = torch.from_numpy(np.atleast_1d(odds))
    return start
