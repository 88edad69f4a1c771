"""Scores of held-out episodes -> metrics.json, report.html and the table that a run ends with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import ican_ml
from ican_ml.evaluation.conformal import Calibration, SetMetrics, evaluate_sets
from ican_ml.evaluation.curves import LearningCurve, task_curves
from ican_ml.evaluation.evaluate import PRIMARY_METRIC, TaskMetrics, evaluate_task, mean_and_sd
from ican_ml.evaluation.outcome import Outcome
from ican_ml.evaluation.report import Report, Section, TaskReport, metric_label, write_report
from ican_ml.evaluation.table import Cell, MeanSd, summary_table

if TYPE_CHECKING:
    import polars as pl

    from ican_ml.training.resistance import Resistance

MODEL, ORACLE = "model", "oracle"
_log = logging.getLogger(__name__)
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """One fold: its held-out episodes, ``<task>/<scorer>`` predictions of them, and the losses by epoch.

    ``calibration``: the model's prediction sets, by task that has them. ``resistance``: what its model found.
    """

    name: str
    rows: Int64
    arrays: Mapping[str, Float64]
    curve: Sequence[Mapping[str, float]]
    calibration: Mapping[str, Calibration] = field(default_factory=dict)
    resistance: Sequence[Resistance] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResults:
    """Metrics of one task by scorer: pooled over the folds' held-out episodes, and fold by fold.

    ``sets``: of the model's prediction sets, each fold's by its own quantile, where some fold has them.
    """

    name: str
    pooled: dict[str, TaskMetrics]
    folds: dict[str, list[TaskMetrics]]
    sets: SetMetrics | None = None


def evaluate_scores(
    name: str, outcome: Outcome, episodes: pl.DataFrame, scores: Sequence[Scores], *, replicates: int, seed: int
) -> TaskResults:
    """Evaluate every scorer of a task, with intervals by subject on the pooled episodes."""
    scorers = [key.removeprefix(f"{name}/") for key in scores[0].arrays if key.startswith(f"{name}/")]
    every = np.concatenate([fold.rows for fold in scores])

    def evaluated(rows: Int64, values: Float64, replicates: int) -> TaskMetrics:
        labels = episode_labels(episodes, rows)
        return evaluate_task(
            outcome.take(rows),
            values,
            subject_id=labels["subject_id"],
            treatment=labels["treatment"],
            indication=labels.get("indication"),
            replicates=replicates,
            seed=seed,
        )

    return TaskResults(
        name=name,
        pooled={
            scorer: evaluated(every, np.concatenate([fold.arrays[f"{name}/{scorer}"] for fold in scores]), replicates)
            for scorer in scorers
        },
        folds={
            scorer: [evaluated(fold.rows, fold.arrays[f"{name}/{scorer}"], 0) for fold in scores] for scorer in scorers
        },
        sets=_evaluated_sets(name, outcome, episodes, scores, replicates=replicates, seed=seed),
    )


def _evaluated_sets(
    name: str, outcome: Outcome, episodes: pl.DataFrame, scores: Sequence[Scores], *, replicates: int, seed: int
) -> SetMetrics | None:
    known = [fold for fold in scores if name in fold.calibration]
    if not known:
        return None
    rows = np.concatenate([fold.rows for fold in known])
    labels = episode_labels(episodes, rows)
    return evaluate_sets(
        outcome.value[rows],
        np.concatenate([fold.calibration[name].members(fold.arrays[f"{name}/{MODEL}"]) for fold in known]),
        coverage=known[0].calibration[name].coverage,
        subject_id=labels["subject_id"],
        indication=labels.get("indication"),
        replicates=replicates,
        seed=seed,
    )


def set_sections(results: Sequence[TaskResults]) -> list[Section]:
    """A table of the prediction sets of each task that has them."""
    note = (
        "The answers that the model does not rule out, meant to hold the truth in {:.0%} of all episodes together "
        "(split conformal, by the tuning subjects). Both or neither: undecided."
    )
    return [
        Section(
            title=f"Prediction sets: {task.name.replace('_', ' ')}",
            rows=task.sets.rows(),
            notes=[note.format(task.sets.coverage)],
        )
        for task in results
        if task.sets is not None
    ]


def found_resistance(scores: Sequence[Scores]) -> list[dict[str, Any]]:
    """Pairs of altered feature and drug class by task: mean share and number of folds, found in most folds first."""
    shares: dict[tuple[str, ...], list[float]] = {}
    for each in (found for fold in scores for found in fold.resistance):
        shares.setdefault((each.task, each.modality, each.feature, each.drug_class), []).append(each.share)
    named = [
        (dict(zip(("task", "modality", "feature", "drug_class"), key, strict=True)), shares[key]) for key in shares
    ]
    found = [{**pair, "share": float(np.mean(each)), "folds": len(each)} for pair, each in named]
    return sorted(found, key=lambda each: (-each["folds"], -each["share"]))


def resistance_sections(scores: Sequence[Scores]) -> list[Section]:
    """A table of them, if there are any."""
    rows = [
        {
            "altered": f"{each['feature']} ({each['modality']})",
            "drugs of class": each["drug_class"],
            "effect lost": f"{each['share']:.0%}",
            **({"folds": f"{each['folds']} of {len(scores)}"} if len(scores) > 1 else {}),
        }
        for each in found_resistance(scores)
    ]
    note = "Effect: what altered targets promise. By the training episodes; an association, not a cause."
    return [Section(title="Resistance", rows=rows, notes=[note])] if rows else []


def results_table(results: Sequence[TaskResults]) -> str:
    """What a run ends with: intervals for one split, mean and standard deviation over folds; then prediction sets."""
    lines: list[dict[str, Cell]] = []
    for task in results:
        for scorer, metrics in task.pooled.items():
            line: dict[str, Cell] = {"task": task.name, "by": scorer}
            if len(task.folds[scorer]) > 1:
                line |= {metric_label(m): MeanSd(*v) for m, v in mean_and_sd(task.folds[scorer]).items()}
            else:
                line |= {metric_label(m): interval for m, interval in metrics.overall.metrics.items()}
            lines.append(line)
    return "\n\n".join([summary_table(lines), *(section.text() for section in set_sections(results))])


def metrics_document(results: Sequence[TaskResults], scores: Sequence[Scores], difference: float) -> dict[str, Any]:
    """What ``metrics.json`` holds."""
    return {
        "ican_ml": ican_ml.__version__,
        "onnx_parity": difference,
        "resistance": found_resistance(scores),
        "tasks": {
            task.name: {
                scorer: {
                    "headline": PRIMARY_METRIC[metrics.kind],
                    "pooled": metrics.to_dict(),
                    "folds": [fold.to_dict()["overall"] for fold in task.folds[scorer]],
                    "mean_and_sd": {k: [_finite(x) for x in v] for k, v in mean_and_sd(task.folds[scorer]).items()},
                    **({"sets": task.sets.to_dict()} if task.sets is not None and scorer == MODEL else {}),
                }
                for scorer, metrics in task.pooled.items()
            }
            for task in results
        },
    }


def write_run_report(
    path: Path,
    *,
    title: str,
    description: str,
    cohort: Mapping[str, str | int | float],
    episodes: pl.DataFrame,
    outcomes: Mapping[str, Outcome],
    scores: Sequence[Scores],
    results: Sequence[TaskResults],
    sections: Sequence[Section],
    notes: Sequence[str],
) -> None:
    """Write ``report.html``."""
    rows = np.concatenate([fold.rows for fold in scores])
    tasks = []
    for task in results:
        pooled = {s: np.concatenate([fold.arrays[f"{task.name}/{s}"] for fold in scores]) for s in task.pooled}
        curves = task_curves(
            outcomes[task.name].take(rows), pooled, indication=episode_labels(episodes, rows).get("indication")
        )
        tasks.append(TaskReport(name=task.name, results=task.pooled, folds=task.folds, curves=curves))
    learning = [
        LearningCurve(
            label=fold.name,
            epoch=np.array([row["epoch"] for row in fold.curve]),
            train=np.array([row["train_loss"] for row in fold.curve]),
            tuning=np.array([row["tuning_loss"] for row in fold.curve]),
        )
        for fold in scores
        if fold.curve
    ]
    write_report(
        path,
        Report(
            title=title,
            description=description,
            cohort=cohort,
            tasks=tasks,
            learning=learning,
            sections=[*set_sections(results), *resistance_sections(scores), *sections],
            notes=notes,
        ),
    )


def episode_labels(episodes: pl.DataFrame, rows: Int64) -> dict[str, npt.NDArray[Any]]:
    """Columns of the episodes that metrics group by: ``subject_id``, ``treatment`` and, where known, ``indication``."""
    chosen = episodes[rows]
    labels = {
        "subject_id": chosen["subject_id"].to_numpy(),
        "treatment": np.array(["+".join(drugs or ()) for drugs in chosen["treatment"].to_list()], dtype=str),
    }
    if "indication" in chosen.columns:
        labels["indication"] = chosen["indication"].cast(str).fill_null("unknown").to_numpy().astype(str)
    return labels


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
