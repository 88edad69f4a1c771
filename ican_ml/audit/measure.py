"""The number an audit reads: a task's headline metric on held-out rows, averaged over folds.

Folds are averaged, never pooled: a model learns its fold's base rate, which is high where the held-out rows' is low, so
that pooled scores of models without any skill rank below chance (Parker, Guenter and Bedo, BMC Bioinformatics 8:326,
2007).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ican_ml.evaluation.evaluate import PRIMARY_METRIC
from ican_ml.evaluation.metrics import treatment_groups
from ican_ml.evaluation.outcome import FloatArray, IntArray, Kind, Outcome
from ican_ml.evaluation.weighted import WeightedMetric, weighted_auroc, weighted_group_pearson, weighted_harrell_c
from ican_ml.results import episode_labels

if TYPE_CHECKING:
    import polars as pl

CHANCE: dict[Kind, float] = {"binary": 0.5, "survival": 0.5, "regression": 0.0}


def headline(outcome: Outcome, episodes: pl.DataFrame, rows: Sequence[IntArray]) -> str:
    """Name of the metric: AUROC, c-index, or r (within treatments where every fold has some with enough rows)."""
    if outcome.kind == "regression":
        known = (held_out[outcome.labelled[held_out]] for held_out in rows)
        groups = [treatment_groups(episode_labels(episodes, fold)["treatment"]) for fold in known]
        return PRIMARY_METRIC["regression"] if all((group >= 0).any() for group in groups) else "pearson"
    return PRIMARY_METRIC[outcome.kind]


def labelled_rows(outcome: Outcome, rows: Sequence[IntArray]) -> IntArray:
    """Of the held-out rows of all folds, those with an outcome, in order."""
    every = np.concatenate(rows)
    return every[outcome.labelled[every]]


def held_out_metric(
    outcome: Outcome, episodes: pl.DataFrame, rows: Sequence[IntArray], scores: Sequence[FloatArray]
) -> WeightedMetric:
    """The headline metric, averaged over folds, as a function of weights of the :func:`labelled_rows`.

    Parameters
    ----------
    outcome, episodes
        Of all episodes.
    rows, scores
        Fold by fold: held-out row numbers, and a score for each of them, labelled or not.
    """
    name = headline(outcome, episodes, rows)
    parts: list[tuple[slice, WeightedMetric]] = []
    start = 0
    for held_out, score in zip(rows, scores, strict=True):
        known = held_out[outcome.labelled[held_out]]
        part = slice(start, start + len(known))
        labels = episode_labels(episodes, known)
        parts.append((part, _metric(name, outcome.take(known), score[outcome.labelled[held_out]], labels)))
        start = part.stop

    def evaluate(weights: FloatArray) -> FloatArray:
        found: FloatArray = np.mean([metric(weights[part]) for part, metric in parts], axis=0)
        return found

    return evaluate


def _metric(name: str, outcome: Outcome, score: FloatArray, labels: Mapping[str, NDArray[Any]]) -> WeightedMetric:
    if outcome.kind == "binary":
        return weighted_auroc(outcome.value, score)
    if outcome.kind == "survival":
        return weighted_harrell_c(
            outcome.value, outcome.event, score, entry=outcome.entry, strata=labels.get("indication")
        )
    group = np.zeros(len(score), np.int64) if name == "pearson" else treatment_groups(labels["treatment"])
    correlation = weighted_group_pearson(outcome.value, score, group)
    return lambda weights: np.nan_to_num(correlation(weights))  # a constant score tells nothing: r = 0
