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


def task_loss(task: Task, output: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean negative log likelihood; ``target`` and ``weight`` come from ``ican_ml.training.outcomes.loss_arrays``."""
    if task.kind == "regression":
        mean, log_variance = output[..., 0], output[..., 1].clamp(-8, 8)
        each = 0.5 * (log_variance + (target - mean).square() * torch.exp(-log_variance))
        return (each * weight).sum() / weight.sum().clamp(min=1)
    each = functional.binary_cross_entropy_with_logits(output, target, reduction="none") * weight
    episodes = weight.amax(-1).sum() if task.kind == "survival" else weight.sum()
    return each.sum() / episodes.clamp(min=1)


def total_loss(tasks: Sequence[Task], outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Sum over tasks. Outputs are cut to the batch's regimens."""
    losses = []
    for task in tasks:
        output = outputs[task.name]
        target, weight = (batch[f"{task.name}_{part}"][:, : output.shape[1]] for part in ("target", "weight"))
        losses.append(task_loss(task, output, target, weight))
    return torch.stack(losses).sum()
