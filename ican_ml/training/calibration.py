"""Calibrate the probabilities of a fitted network on the tuning subjects: Platt scaling, then conformal sets.

In: the network and the tuning patients as its fit saw them, with the scores of trees that did not grow on them (where
the kept trees did, the network's own answers would look too certain). Out: slope and intercept of every binary task
in the network's buffers, so that whoever asks it, through torch or ONNX, gets calibrated answers, and a
:class:`~ican_ml.evaluation.conformal.Calibration` each.

Platt 1999: the calibrated logit is slope x logit + intercept, by maximum likelihood. Log slope and intercept have a
normal prior of standard deviation 0.5 around the identity, which few episodes hardly leave; the slope stays positive,
so no order changes. Tuning subjects have also chosen the epoch, the ridge strength and the number of trees, and the
two numbers fitted here: little enough for quantiles, and what it adds is seen in the held-out coverage.
"""

from __future__ import annotations

import numpy as np
import torch

from ican_ml.evaluation.conformal import Calibration, conformal_quantile
from ican_ml.inputs.answer import Float64, sigmoid
from ican_ml.inputs.encode import Int64
from ican_ml.inputs.schema import Task
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.training.data import PatientData

MIN_EPISODES = 50
_PRIOR_SD = 0.5
_ROWS = 512


def calibrate(
    network: PatientTransformer, tuning: PatientData, subject: Int64, *, coverage: float
) -> dict[str, Calibration]:
    """Set the network's calibration in place.

    Parameters
    ----------
    tuning
        The patients and outcomes to calibrate on.
    subject
        int64 [N]: whose state each patient is.
    coverage
        Of the conformal sets.

    Returns
    -------
    dict
        By binary task; one with fewer than `MIN_EPISODES` tuning episodes of either outcome stays as it is, and has
        no entry.
    """
    network.eval()
    found: dict[str, Calibration] = {}
    binary = [task for task in network.tasks if task.kind == "binary"]
    for task in binary:
        network.set_calibration(task.name, 1.0, 0.0)
    if not binary or not len(tuning.rows):
        return found
    for name, (logit, happened, patient) in _episodes(network, tuning, binary).items():
        if min(happened.sum(), len(happened) - happened.sum()) < MIN_EPISODES:
            continue
        slope, intercept = platt(logit, happened)
        network.set_calibration(name, slope, intercept)
        probability = sigmoid(slope * logit + intercept)
        found[name] = Calibration(
            task=name,
            slope=slope,
            intercept=intercept,
            coverage=coverage,
            quantile=conformal_quantile(np.where(happened == 1, 1 - probability, probability), coverage),
            n_episodes=len(happened),
            n_subjects=len(np.unique(subject[patient])),
            variance=platt_variance(logit, happened, subject[patient], slope, intercept),
        )
    return found


def platt(logit: Float64, happened: Float64) -> tuple[float, float]:
    """Slope and intercept, float32 numbers, with a likelihood of at least that of the identity's (1, 0).

    Parameters
    ----------
    logit
        [episodes].
    happened
        [episodes] 0 or 1.
    """
    from scipy.optimize import minimize

    def loss(slope: float, intercept: float) -> float:
        line = slope * logit + intercept
        return float((np.logaddexp(0.0, line) - happened * line).sum())

    def penalised(x: Float64) -> tuple[float, Float64]:
        slope = np.exp(x[0])
        error = sigmoid(slope * logit + x[1]) - happened
        gradient = np.array([slope * (error @ logit), error.sum()]) + x / _PRIOR_SD**2
        return loss(slope, x[1]) + 0.5 * float(x @ x) / _PRIOR_SD**2, gradient

    x = minimize(penalised, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-5.0, 5.0), (None, None)]).x
    slope, intercept = float(np.float32(np.exp(x[0]))), float(np.float32(x[1]))
    return (slope, intercept) if loss(slope, intercept) < loss(1.0, 0.0) else (1.0, 0.0)


def platt_variance(
    logit: Float64, happened: Float64, subject: Int64, slope: float, intercept: float
) -> tuple[float, float, float]:
    """Variance of the log slope, covariance, variance of the intercept: the sandwich of a subject's episodes together.

    Huber 1967; Liang and Zeger 1986 for clusters. The prior's curvature is in its bread.
    """
    probability = sigmoid(slope * logit + intercept)
    moved = np.stack([slope * logit, np.ones_like(logit)], axis=1)
    bread = np.linalg.inv(moved.T @ (moved * (probability * (1 - probability))[:, None]) + np.eye(2) / _PRIOR_SD**2)
    who, place = np.unique(subject, return_inverse=True)
    gradient = np.zeros((len(who), 2))
    np.add.at(gradient, place, moved * (probability - happened)[:, None])
    found = bread @ gradient.T @ gradient @ bread * len(who) / (len(who) - 1)
    return float(found[0, 0]), float(found[0, 1]), float(found[1, 1])


def _episodes(
    network: PatientTransformer, data: PatientData, tasks: list[Task]
) -> dict[str, tuple[Float64, Float64, Int64]]:
    """By task: logit, outcome and patient of every episode with an outcome."""
    parts: dict[str, list[tuple[Float64, Float64, Int64]]] = {task.name: [] for task in tasks}
    for start in range(0, len(data.rows), _ROWS):
        rows = data.rows[start : start + _ROWS]
        batch = data.batch(rows)
        with torch.inference_mode():
            outputs = network(batch)
        for name, found in parts.items():
            output = outputs[name].double().numpy()
            target, weight = (batch[f"{name}_{part}"][:, : output.shape[1]].numpy() for part in ("target", "weight"))
            row, slot = np.nonzero(weight > 0)
            found.append((output[row, slot], target[row, slot].astype(np.float64), rows[row]))
    return {name: tuple(map(np.concatenate, zip(*found, strict=True))) for name, found in parts.items()}  # type: ignore[misc]
