"""Baselines of a drug screen, where every row is one drug on one sample and drugs share their samples.

Ridge: one linear model per drug on the samples' components (one strength for all drugs, chosen on the tuning rows).
Boosting: trees on the samples' leading components and the drug's latent description (the components of its responses
over the training samples), for what the drug's mean leaves unexplained: few small trees, averaged over five growths, or
many large ones, as the tuning rows like it. (Samples not seen before want the former, pairs the latter.) Both learn
from training and tuning rows in the end, and predict unseen samples of known drugs; a drug without such rows gets the
overall mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ican_ml.evaluation.boosting import BoostingConfig, fit_boosting
from ican_ml.evaluation.design import Design, Float32Array, MatrixConfig, patient_components
from ican_ml.evaluation.outcome import FloatArray, IntArray, Outcome

_LATENT = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class _Size:
    components: int
    growths: int
    change: Mapping[str, Any] = field(default_factory=dict)


_SIZES = (
    _Size(components=30, growths=5),
    _Size(components=60, growths=5),
    _Size(components=60, growths=1, change={"trees": 2000, "depth": 8, "learning_rate": 0.1}),
)


def fit_screen_ridge(
    design: Design,
    outcome: Outcome,
    train_rows: IntArray,
    tuning_rows: IntArray,
    test_rows: IntArray,
    *,
    strengths: Sequence[float],
    matrix: MatrixConfig,
    seed: int,
) -> FloatArray:
    """Predictions [test rows] of one ridge regression per drug."""
    z = patient_components(design, train_rows, matrix, seed)
    drug = design.regimen.argmax(axis=1)
    best = strengths[len(strengths) // 2]
    if len(tuning_rows):
        tried = _per_drug(z, design.patient, drug, outcome.value, train_rows, tuning_rows, strengths)
        best = strengths[int(np.argmin(((tried - outcome.value[tuning_rows]) ** 2).mean(axis=1)))]
    both = np.concatenate([train_rows, tuning_rows])
    scores: FloatArray = _per_drug(z, design.patient, drug, outcome.value, both, test_rows, [best])[0]
    return scores


def fit_screen_boosting(
    design: Design,
    outcome: Outcome,
    train_rows: IntArray,
    tuning_rows: IntArray,
    test_rows: IntArray,
    *,
    config: BoostingConfig,
    matrix: MatrixConfig,
    seed: int,
    threads: int,
) -> FloatArray:
    """Predictions [test rows]: the drug's mean plus boosted trees on sample and drug."""
    drug = design.regimen.argmax(axis=1)

    def grown(size: _Size, fit_rows: IntArray, query: IntArray, growths: int) -> FloatArray:
        means = _drug_means(drug, outcome.value, fit_rows, design.regimen.shape[1])
        reduced = replace(matrix, components=min(matrix.components, size.components))
        values = _screen_matrix(design, outcome, drug, means, fit_rows, reduced, seed)
        found = [
            fit_boosting(
                values,
                Outcome.regression(outcome.value - means[drug]),
                fit_rows,
                tuning_rows[:0],
                query,
                config=replace(config, **size.change),
                seed=seed + number,
                threads=threads,
            )
            for number in range(growths)
        ]
        scores: FloatArray = means[drug[query]] + np.mean(found, axis=0)
        return scores

    size = _SIZES[0]
    if len(tuning_rows):
        wanted = outcome.value[tuning_rows]
        error = [((grown(size, train_rows, tuning_rows, 1) - wanted) ** 2).mean() for size in _SIZES]
        size = _SIZES[int(np.argmin(error))]
    return grown(size, np.concatenate([train_rows, tuning_rows]), test_rows, size.growths)


def _screen_matrix(
    design: Design,
    outcome: Outcome,
    drug: IntArray,
    means: FloatArray,
    fit_rows: IntArray,
    matrix: MatrixConfig,
    seed: int,
) -> Float32Array:
    """float32 [rows, components + latent + 1]: the sample's omics, the drug's latent description and mean response."""
    z = patient_components(design, fit_rows, matrix, seed)
    response = np.zeros((len(means), len(z)))
    response[drug[fit_rows], design.patient[fit_rows]] = outcome.value[fit_rows] - means[drug[fit_rows]]
    left, size, _ = np.linalg.svd(response, full_matrices=False)
    latent = (left * size)[:, :_LATENT] / max(float(size[0]), 1e-9)
    columns = [z[design.patient], latent[drug], means[drug][:, None]]
    return np.concatenate(columns, axis=1, dtype=np.float32, casting="same_kind")


def _per_drug(
    z: FloatArray,
    patient: IntArray,
    drug: IntArray,
    y: FloatArray,
    fit_rows: IntArray,
    query_rows: IntArray,
    strengths: Sequence[float],
) -> FloatArray:
    """Predictions [strengths, query rows]."""
    means = _drug_means(drug, y, fit_rows, int(drug.max()) + 1)
    found = np.tile(means[drug[query_rows]], (len(strengths), 1))
    fit_order, query_order = np.argsort(drug[fit_rows], kind="stable"), np.argsort(drug[query_rows], kind="stable")
    numbers = np.arange(len(means) + 1)
    fit_bounds = np.searchsorted(drug[fit_rows][fit_order], numbers)
    query_bounds = np.searchsorted(drug[query_rows][query_order], numbers)
    for number in range(len(means)):
        fit = fit_rows[fit_order[fit_bounds[number] : fit_bounds[number + 1]]]
        places = query_order[query_bounds[number] : query_bounds[number + 1]]
        if len(fit) < 2 or not len(places):
            continue
        x = z[patient[fit]]
        centre = x.mean(axis=0)
        values, vectors = np.linalg.eigh((x - centre) @ (x - centre).T)
        values = np.maximum(values, 0.0)
        projected = vectors.T @ (y[fit] - means[number])
        kernel = (z[patient[query_rows[places]]] - centre) @ (x - centre).T @ vectors
        for place, strength in enumerate(strengths):
            found[place, places] += kernel @ (projected / (values + strength))
    return found


def _drug_means(drug: IntArray, y: FloatArray, fit_rows: IntArray, n_drugs: int) -> FloatArray:
    count = np.bincount(drug[fit_rows], minlength=n_drugs)
    total = np.bincount(drug[fit_rows], weights=y[fit_rows], minlength=n_drugs)
    overall = y[fit_rows].mean() if len(fit_rows) else 0.0
    return np.where(count > 0, total / np.maximum(count, 1), overall)
