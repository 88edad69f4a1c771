"""Negative log likelihoods by task kind, averaged over the episodes of a batch that have an outcome.

Shapes: B patients, R regimens, K survival intervals. Binary: Bernoulli. Survival: discrete-time hazards (Gensheimer and
Narasimhan 2019, doi:10.7717/peerj.6257). Regression: Gaussian with predicted variance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ican_ml.inputs.schema import Task


def task_loss(task: Task, output: Tensor, target: Tensor, weight: Tensor, episodes: Tensor | None = None) -> Tensor:
    """Mean negative log likelihood; ``target`` and ``weight`` come from ``ican_ml.training.outcomes.loss_arrays``.

    ``episodes``: what to divide the sum by; default: the weight of the episodes at hand.
    """
    if task.kind == "regression":
        mean, log_variance = output[..., 0], output[..., 1].clamp(-8, 8)
        each = 0.5 * (log_variance + (target - mean).square() * torch.exp(-log_variance)) * weight
    else:
        each = functional.binary_cross_entropy_with_logits(output, target, reduction="none") * weight
    if episodes is None:
        episodes = (weight.amax(-1) if task.kind == "survival" else weight).sum().clamp(min=1)
    return each.sum() / episodes


def total_loss(tasks: Sequence[Task], outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Sum over tasks. Outcomes are cut to the regimens of the outputs; ``<task>_episodes`` is as for `task_loss`."""
    losses = []
    for task in tasks:
        output = outputs[task.name]
        target, weight = (batch[f"{task.name}_{part}"][:, : output.shape[1]] for part in ("target", "weight"))
        losses.append(task_loss(task, output, target, weight, batch.get(f"{task.name}_episodes")))
    return torch.stack(losses).sum()
