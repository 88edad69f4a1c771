"""Network outputs -> predictions that people read. Torch-free, shared by evaluation and serving."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ican_ml.inputs.schema import Task

Float64 = npt.NDArray[np.float64]


def summarise(task: Task, output: npt.NDArray[np.generic]) -> Float64:
    """One number a regimen: probability, expected days, or mean. ``output`` [..., R(, bins)] -> [..., R]."""
    values = output.astype(np.float64)
    if task.kind == "binary":
        return sigmoid(values)
    if task.kind == "regression":
        return np.asarray(values[..., 0])
    return expected_days(task, values)


def members_of(task: Task) -> str:
    """Name of the output that holds each member of the ensemble."""
    return f"{task.name}_members"


def uncertainty(task: Task, members: npt.NDArray[np.generic]) -> tuple[Float64, Float64]:
    """Aleatoric and epistemic uncertainty, [..., R] each, from the members' outputs [..., R, E(, bins)].

    Aleatoric is what the members agree cannot be known, epistemic is what they disagree about. Binary: mean entropy of
    the members' answers, and the mutual information of answer and member, in bits; their sum is the entropy of the mean
    (Depeweg et al. 2018, arXiv:1710.07283). Regression and survival: standard deviations, of the outcome under a member
    (survival: in days, within the observed span) and of the members' expectations.
    """
    values = members.astype(np.float64)
    if task.kind == "binary":
        each = sigmoid(values)
        aleatoric = _bits(each).mean(-1)
        return aleatoric, np.maximum(_bits(each.mean(-1)) - aleatoric, 0.0)
    if task.kind == "regression":
        return np.sqrt(np.exp(values[..., 1]).mean(-1)), values[..., 0].std(-1)
    days, squared = _moments(task, values)
    return np.sqrt(np.maximum(squared - days**2, 0.0).mean(-1)), days.std(-1)


def _bits(probability: Float64) -> Float64:
    inside = np.clip(probability, 1e-12, 1 - 1e-12)
    return np.asarray(-(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside)))


def sigmoid(logits: Float64) -> Float64:
    """Logistic function without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


def expected_days(task: Task, hazard_logits: Float64) -> Float64:
    """Restricted mean survival: the area under the predicted survival curve up to the last edge."""
    return _moments(task, hazard_logits)[0]


def risk(hazard_logits: npt.NDArray[np.generic]) -> Float64:
    """Probability of the event, averaged over the task's edges, which are quantiles of the times of training's events.

    What survival is ranked by: pairs are told apart at such times, not in the long tail that rules `expected_days`.
    [..., bins] -> [...].
    """
    return np.asarray(1 - event_free(hazard_logits).mean(-1))


def event_free(hazard_logits: npt.NDArray[np.generic]) -> Float64:
    """Probability to be free of the event at each of the task's edges: hazard logits [..., bins] -> [..., bins]."""
    return np.asarray(np.exp(np.cumsum(-np.logaddexp(0.0, hazard_logits.astype(np.float64)), axis=-1)))


def _moments(task: Task, hazard_logits: Float64) -> tuple[Float64, Float64]:
    """Expectations of the days survived up to the last edge, and of their square."""
    survival = event_free(hazard_logits)
    edges = np.asarray(task.edges)
    widths = np.diff(edges, prepend=0.0)
    before = np.concatenate([np.ones_like(survival[..., :1]), survival[..., :-1]], axis=-1)
    area = (before + survival) / 2 * widths
    return np.asarray(area.sum(-1)), np.asarray((area * (2 * edges - widths)).sum(-1))
