"""Fit the linear path: penalised maximum likelihood by L-BFGS over a path of ridge strengths, for what trees leave.

The whole training set is one batch. From strong to weak, each strength starts at the solution of the one before, and
the one with the lowest loss on the tuning patients wins. (Ridge: Hoerl and Kennard 1970; path with warm starts:
Friedman, Hastie, Tibshirani 2010, doi:10.18637/jss.v033.i01.)

The deep path then learns what the linear one leaves. On the patients that it was fitted on, that is too little, so in
training each patient's linear score comes from a fit on other subjects (cross-fitting: Wolpert 1992,
doi:10.1016/S0893-6080(05)80023-1); tuning, evaluation and the exported graph use the fit on all of them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ican_ml.inputs.encode import Int64
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.training.data import Batch, PatientData
from ican_ml.training.losses import total_loss

_FOLDS = 5
NOTHING = float("inf")  # only the biases are fitted: after other paths the linear one has to earn its place


@dataclass(frozen=True, kw_only=True, slots=True)
class WideFit:
    """The chosen ridge strength (in units of a sum over episodes), and the tuning loss along the path."""

    strength: float
    path: tuple[tuple[float, float], ...]


def fit_wide(
    network: PatientTransformer, train: PatientData, tuning: PatientData, *, strengths: list[float]
) -> WideFit:
    """Fit ``network.wide`` and the biases in place; the deep path takes no part.

    Parameters
    ----------
    strengths
        Ridge penalties to try, strongest first. After other paths none at all is tried before them.
    """
    network.eval()
    train_part, tuning_part = (_WidePart.of(network, data) for data in (train, tuning))
    best: tuple[float, float, dict[str, Tensor]] | None = None
    path: list[tuple[float, float]] = []
    earlier = network.trees is not None or network.kernel is not None
    for strength in [NOTHING, *strengths] if earlier else strengths:
        _minimise(network, train_part, strength / train_part.n_episodes)
        with torch.no_grad():
            loss = float(train_part.loss(network) if not tuning_part.n_episodes else tuning_part.loss(network))
        path.append((strength, loss))
        if best is None or loss < best[1]:
            best = (strength, loss, copy.deepcopy(network.state_dict()))
        else:
            break
    assert best is not None
    network.load_state_dict(best[2])
    return WideFit(strength=best[0], path=tuple(path))


def cross_fit(
    network: PatientTransformer, train: PatientData, subject: Int64, *, strength: float, seed: int
) -> PatientData:
    """``train`` with the linear scores of each patient from fits without its subject.

    Parameters
    ----------
    subject
        int64 [N]: whose state each patient is.

    Returns
    -------
    PatientData
        With ``wide_patient`` [N, tasks] and ``wide_treatment`` [N, R, tasks] among its arrays.
    """
    fold = subject_folds(subject[train.rows], _FOLDS, seed)
    n_patients, n_slots = train.shape
    patient = np.zeros((n_patients, len(network.tasks)), np.float32)
    treatment = np.zeros((n_patients, n_slots, len(network.tasks)), np.float32)
    fitted = copy.deepcopy(network.state_dict())
    for f in np.unique(fold):
        rows = train.rows[fold == f]
        others = _WidePart.of(network, replace(train, rows=train.rows[fold != f]))
        left_out = _WidePart.of(network, replace(train, rows=rows))
        _minimise(network, others, strength / others.n_episodes)
        with torch.no_grad():
            patient_BN, treatment_BRN = left_out.scores(network)
        patient[rows] = patient_BN.numpy()
        treatment[rows, : treatment_BRN.shape[1]] = treatment_BRN.numpy()
        network.load_state_dict(fitted)
    return train.with_scores(wide_patient=patient, wide_treatment=treatment)


def subject_folds(subject: Int64, folds: int, seed: int) -> Int64:
    """int64: the fold of each entry, drawn by subject."""
    _, number = np.unique(subject, return_inverse=True)
    drawn: Int64 = np.random.default_rng(seed).permutation(int(number.max()) + 1)[number] % folds
    return drawn


@dataclass(frozen=True, kw_only=True, slots=True)
class _WidePart:
    """All patients of a part as one batch, normalised once."""

    batch: Batch
    scaled: dict[str, Tensor]
    state: Tensor
    n_episodes: float

    @classmethod
    def of(cls, network: PatientTransformer, data: PatientData) -> _WidePart:
        batch = data.batch(data.rows)
        with torch.no_grad():
            batch = network.with_earlier(batch)
            scaled, state = network.normalise(batch)
        batch = {name: value for name, value in batch.items() if "token" not in name and not name.startswith("event_")}
        n_episodes = sum(_n_episodes(value) for name, value in batch.items() if name.endswith("_weight"))
        return cls(batch=batch, scaled=scaled, state=state, n_episodes=n_episodes)

    def scores(self, network: PatientTransformer) -> tuple[Tensor, Tensor]:
        patient_BN, treatment_BRN = network.wide(self.batch, self.scaled, self.state)
        return patient_BN, treatment_BRN

    def loss(self, network: PatientTransformer) -> Tensor:
        patient_BN, treatment_BRN = self.scores(network)
        for earlier in ("trees", "kernel"):
            if earlier in self.batch:
                treatment_BRN = treatment_BRN + self.batch[earlier][:, : treatment_BRN.shape[1]]
        return total_loss(network.tasks, network.outputs(patient_BN[:, None] + treatment_BRN, {}), self.batch)


def _minimise(network: PatientTransformer, part: _WidePart, penalty: float) -> None:
    weights = list(network.wide.parameters()) if penalty < NOTHING else []
    optimiser = torch.optim.LBFGS(
        weights + list(network.bias.parameters()),
        max_iter=60,
        history_size=10,
        tolerance_change=1e-8,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = part.loss(network)
        if weights:
            loss = loss + 0.5 * penalty * torch.stack([w.square().sum() for w in weights]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    optimiser.zero_grad()


def _n_episodes(weight: Tensor) -> float:
    return float((weight.amax(-1) if weight.dim() == 3 else weight).sum())
