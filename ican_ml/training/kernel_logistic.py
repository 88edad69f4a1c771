"""Likeness to training patients for binary and survival tasks: a patient's score by penalised likelihood.

Kernel logistic regression (Jaakkola and Haussler 1999), for survival on the network's own discrete hazards, on top of
what earlier paths say: the score s = K a minimises the loss plus ``penalty`` / 2 * a' K a. It is the same under every
treatment. Penalty and weights of the modalities are what predicts best in cross-validation by subject.

Shapes: S patients, E episodes, K survival intervals (1 for binary), V views.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ican_ml.inputs.encode import Int64
from ican_ml.inputs.schema import Task
from ican_ml.training.data import PatientData

Float = npt.NDArray[np.float64]
_PENALTIES = (0.3, 1.0, 3.0, 10.0)
_FACTORS = (0.3, 3.0)
_WORTH = 1e-4  # a smaller gain is none
_LITTLE = 1e-9
_ODDS = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Episodes:
    """Outcomes of episodes: of which patient, [E, K] target and weight, and the score that earlier paths give [E]."""

    patient: Int64
    slot: Int64
    target: Float
    weight: Float
    offset: Float

    @classmethod
    def of(cls, task: Task, number: int, parts: tuple[PatientData, ...], rows: Int64) -> Episodes:
        """Episodes with an outcome of the patients in ``rows``; ``number`` is the task's among the network's."""
        found = []
        for data in parts:
            target, weight = (data.outcomes[f"{task.name}_{part}"][rows] for part in ("target", "weight"))
            if target.ndim == 2:
                target, weight = target[..., None], weight[..., None]
            patient, slot = np.nonzero(weight.max(2))
            earlier = data.outcomes.get("trees")
            offset = np.zeros(len(patient)) if earlier is None else earlier[rows[patient], slot, number]
            found.append((patient, slot, target[patient, slot], weight[patient, slot], offset))
        names = ("patient", "slot", "target", "weight", "offset")
        return cls(**{name: np.concatenate(each) for name, each in zip(names, zip(*found, strict=True), strict=True)})

    def take(self, chosen: npt.NDArray[np.bool_]) -> Episodes:
        """Only the chosen ones [E]."""
        return Episodes(**{name: getattr(self, name)[chosen] for name in self.__dataclass_fields__})

    def loss(self, score: Float, start: Float) -> tuple[float, Float]:
        """Sum over episodes of the negative log likelihood, and its slope by logit [E, K]."""
        logit = start + (self.offset + score[self.patient])[:, None]
        each = np.logaddexp(0, logit) - self.target * logit
        return float((self.weight * each).sum()), self.weight * (1 / (1 + np.exp(-logit)) - self.target)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Weight of each view, and the penalty."""

    weight: Float
    penalty: float


def fit(kernel: Float, episodes: Episodes, penalty: float) -> tuple[Float, Float]:
    """Weights [S] of the patients, zero for those without an episode, and the start [K] of the logits."""
    from scipy.optimize import minimize

    seen = np.unique(episodes.patient)
    value, vector = np.linalg.eigh(kernel[np.ix_(seen, seen)])
    kept = value > _ODDS * value[-1]
    feature = np.zeros((len(kernel), int(kept.sum())))
    feature[seen] = vector[:, kept] * np.sqrt(value[kept])
    share = (episodes.weight * episodes.target).sum(0) / np.maximum(episodes.weight.sum(0), _LITTLE)
    first = np.log(share + _ODDS) - np.log(1 - share + _ODDS)
    n = feature.shape[1]

    def objective(x: Float) -> tuple[float, Float]:
        loss, slope = episodes.loss(feature @ x[:n], x[n:])
        by_patient = np.bincount(episodes.patient, weights=slope.sum(1), minlength=len(kernel))
        gradient = np.concatenate([feature.T @ by_patient + penalty * x[:n], slope.sum(0)])
        return loss + 0.5 * penalty * float(x[:n] @ x[:n]), gradient

    found = minimize(objective, np.concatenate([np.zeros(n), first]), jac=True, method="L-BFGS-B").x
    weights = np.zeros(len(kernel))
    weights[seen] = vector[:, kept] @ (found[:n] / np.sqrt(value[kept]))
    return weights, found[n:]


def choose(views: Float, share: Float, episodes: Episodes, fold: Int64) -> Choice:
    """Penalty and modality weights by coordinate search, each step one that predicts better than what stood before.

    Parameters
    ----------
    share
        float64 [modalities, views of each]: where the search starts.
    fold
        int64 [S]: the fold of each patient.
    """
    of_episode = fold[episodes.patient]

    def loss(choice: Choice) -> float:
        kernel = np.tensordot(choice.weight, views, 1)
        total = 0.0
        for f in np.unique(of_episode):
            weights, start = fit(kernel, episodes.take(of_episode != f), choice.penalty)
            total += episodes.take(of_episode == f).loss(kernel @ weights, start)[0]
        return total

    best = Choice(weight=share.ravel(), penalty=_PENALTIES[-1])
    least = loss(best)
    for penalty in _PENALTIES[-2::-1]:
        tried = replace(best, penalty=penalty)
        if (found := loss(tried)) >= least:
            break
        best, least = tried, found
    modality = np.repeat(np.arange(len(share)), share.shape[1])
    for m in range(len(share)):
        for factor in _FACTORS:
            weight = np.where(modality == m, factor * best.weight, best.weight)
            tried = replace(best, weight=weight / weight.sum())
            if (found := loss(tried)) < least * (1 - _WORTH):
                best, least = tried, found
    return best
