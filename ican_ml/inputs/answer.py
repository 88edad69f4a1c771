"""Network outputs -> predictions that people read. Torch-free, shared by evaluation and serving."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ican_ml.inputs.schema import Task

Float64 = npt.NDArray[np.float64]


def summarise(task: Task, output: npt.NDArray[np.generic]) -> Float64:
    """One number a regimen: probability, expected days, or mean. ``output`` [B, R(, ...)] -> [B, R]."""
    values = output.astype(np.float64)
    if task.kind == "binary":
        return sigmoid(values)
    if task.kind == "regression":
        return np.asarray(values[..., 0])
    return expected_days(task, values)


def sigmoid(logits: Float64) -> Float64:
    """Logistic function without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


def expected_days(task: Task, hazard_logits: Float64) -> Float64:
    """Restricted mean survival: the area under the predicted survival curve up to the last edge."""
    survival = np.exp(np.cumsum(-np.logaddexp(0.0, hazard_logits), axis=-1))
    widths = np.diff(np.asarray(task.edges), prepend=0.0)
    before = np.concatenate([np.ones_like(survival[..., :1]), survival[..., :-1]], axis=-1)
    return np.asarray(((before + survival) / 2 * widths).sum(-1))
