"""How good is a bundle on a cohort that it was not trained on, and what is different there.

In: folders of a bundle and of a cohort with outcomes. Out: :class:`Evaluation`: metrics with intervals by subject,
overall and by group, calibration, and the shift against training, as a plain document, a table and a report. Nothing in
them tells of a subject; a group of fewer than `MIN_SUBJECTS` labelled subjects is left out. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import ican_ml
from ican_ml.evaluation.bootstrap import Interval
from ican_ml.evaluation.curves import task_curves
from ican_ml.evaluation.evaluate import MIN_SUBJECTS, PRIMARY_METRIC, TaskMetrics, evaluate_task
from ican_ml.evaluation.outcome import Outcome
from ican_ml.evaluation.recalibration import calibration_line, reliability
from ican_ml.evaluation.report import Report, TaskReport, metric_label
from ican_ml.evaluation.shift import shift_rows
from ican_ml.evaluation.table import Cell, summary_table
from ican_ml.inputs.answer import Float64
from ican_ml.inputs.encode import Int64
from ican_ml.inputs.schema import Task
from ican_ml.results import MODEL, Scores, TaskResults, evaluate_scores, results_table, set_sections
from ican_ml.serving.cohort import CohortPredictions, horizon, predict_cohort, text_column
from ican_ml.training.outcomes import read_outcomes

FORMAT = "ican-evaluation/1"
_Groups = dict[str, dict[str, TaskMetrics]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The same results three times: for programs, for a terminal, for a browser."""

    document: dict[str, Any]
    table: str
    report: Report


def evaluate_bundle(
    bundle: str | Path, path: str | Path, *, family: str | None = None, replicates: int = 300, seed: int = 7
) -> Evaluation:
    """Predict a cohort and compare with its outcomes.

    Parameters
    ----------
    bundle, path, family
        See :func:`ican_ml.serving.cohort.predict_cohort`.
    replicates, seed
        Of the bootstrap.

    Raises
    ------
    ValueError
        If the cohort has none of the model's outcomes, or fewer than 10 subjects with one.
    """
    return evaluate_predictions(predict_cohort(bundle, path, family=family), replicates=replicates, seed=seed)


def evaluate_predictions(found: CohortPredictions, *, replicates: int, seed: int) -> Evaluation:
    """:func:`evaluate_bundle` of predictions at hand."""
    episodes = _with_text_labels(found.cohort.episodes)
    outcomes = _known_outcomes(found.tasks, episodes)
    labelled = {name: outcome.labelled for name, outcome in outcomes.items()}
    shift = {**found.shift, "survival": _beyond_the_last_edge(found.tasks, outcomes)}
    groups = _named_groups(episodes)
    results: list[TaskResults] = []
    documents: dict[str, Any] = {}
    by_task: dict[str, _Groups] = {}
    reports = []
    for task in found.tasks:
        if task.name not in outcomes:
            continue
        outcome, rows = outcomes[task.name], np.arange(len(episodes))
        score = (found.risk if task.kind == "survival" else found.prediction)[task.name]
        scores = Scores(
            name="cohort", rows=rows, arrays={f"{task.name}/{MODEL}": score}, curve=(), calibration=found.calibration
        )
        result = evaluate_scores(task.name, outcome, episodes, [scores], replicates=replicates, seed=seed)
        results.append(result)
        by = {
            what: {
                name: _evaluate_rows(outcome, score, episodes, chosen, replicates, seed)
                for name, chosen in members.items()
                if _n_subjects(episodes, chosen[labelled[task.name][chosen]]) >= MIN_SUBJECTS
            }
            for what, members in groups.items()
        }
        by_task[task.name] = by
        documents[task.name] = _document(result.pooled[MODEL], by) | {
            "calibration": _calibration(task, found, outcome, episodes, replicates, seed),
            **({"sets": result.sets.to_dict()} if result.sets is not None else {}),
        }
        curves = task_curves(outcome, {MODEL: score}, indication=_labels(episodes, "indication"))
        reports.append(TaskReport(name=task.name, results=result.pooled, curves=curves))
    document = {
        "format": FORMAT,
        "ican_ml": ican_ml.__version__,
        "cohort": {"name": found.cohort.name, "episodes": len(episodes), "subjects": found.shift["subjects"]},
        "without_outcome": sorted(task.name for task in found.tasks if task.name not in outcomes),
        "tasks": documents,
        "shift": shift,
    }
    rows_of_shift = shift_rows(shift)
    table = "\n\n".join(
        [
            results_table(results),
            summary_table([row for name, by in by_task.items() for row in _group_rows(name, results, by)]),
            *_calibration_tables(documents),
            summary_table([{"shift": what, "": value} for what, value in rows_of_shift]),
        ]
    )
    report = Report(
        title=f"Evaluation on {found.cohort.name}",
        description="A bundle on a cohort that it need not have been trained on. Research software.",
        cohort={"Subjects": found.shift["subjects"], "Episodes": len(episodes)},
        tasks=reports,
        sections=set_sections(results),
        notes=[f"{what}: {value}" for what, value in rows_of_shift],
    )
    return Evaluation(document=document, table=table, report=report)


def _with_text_labels(episodes: pl.DataFrame) -> pl.DataFrame:
    present = [name for name in ("indication", "site") if name in episodes.columns]
    return episodes.with_columns(text_column(episodes, name).fill_null("unknown") for name in present)


def _known_outcomes(tasks: tuple[Task, ...], episodes: pl.DataFrame) -> dict[str, Outcome]:
    wanted = {t.name: [f"{t.name}_time", f"{t.name}_event"] if t.kind == "survival" else [t.name] for t in tasks}
    kinds = {t.name: t.kind for t in tasks if set(wanted[t.name]) <= set(episodes.columns)}
    outcomes = read_outcomes(episodes, kinds)
    enough = {
        name: outcome
        for name, outcome in outcomes.items()
        if _n_subjects(episodes, np.flatnonzero(outcome.labelled)) >= MIN_SUBJECTS
    }
    if not enough:
        columns = ", ".join(column for names in wanted.values() for column in names)
        raise ValueError(
            f"episodes.parquet: expected an outcome of the model ({columns}) in at least {MIN_SUBJECTS} subjects, got "
            f"{'fewer' if outcomes else 'no such column'}; add it, or use `ican predict`"
        )
    return enough


def _named_groups(episodes: pl.DataFrame) -> dict[str, dict[str, Int64]]:
    """Rows of every treatment, of every drug (any regimen that holds it), and of every site."""
    treatments: list[list[str]] = episodes["treatment"].to_list()
    groups: dict[str, dict[str, list[int]]] = {"treatment": {}, "drug": {}}
    for row, drugs in enumerate(treatments):
        if drugs:
            groups["treatment"].setdefault("+".join(sorted(set(drugs))), []).append(row)
        for drug in set(drugs):
            groups["drug"].setdefault(drug, []).append(row)
    sites = _labels(episodes, "site")
    if sites is not None:
        groups["site"] = {str(site): np.flatnonzero(sites == site).tolist() for site in np.unique(sites)}
    return {
        what: {name: np.array(rows, np.int64) for name, rows in sorted(members.items())}
        for what, members in groups.items()
    }


def _evaluate_rows(
    outcome: Outcome, score: Float64, episodes: pl.DataFrame, rows: Int64, replicates: int, seed: int
) -> TaskMetrics:
    chosen = episodes[rows]
    labels = _labels(chosen, "indication") if outcome.kind == "survival" else None
    return evaluate_task(
        outcome.take(rows),
        score[rows],
        subject_id=chosen["subject_id"].to_numpy(),
        indication=labels,
        replicates=replicates,
        seed=seed,
    )


def _document(metrics: TaskMetrics, by: _Groups) -> dict[str, Any]:
    document = metrics.to_dict()
    return {
        "kind": metrics.kind,
        "headline": PRIMARY_METRIC[metrics.kind],
        "overall": document["overall"],
        "by": {"indication": document["by_indication"]}
        | {what: {name: m.overall.to_dict() for name, m in members.items()} for what, members in by.items()},
    }


def _calibration(
    task: Task, found: CohortPredictions, outcome: Outcome, episodes: pl.DataFrame, replicates: int, seed: int
) -> dict[str, Any]:
    rows = np.flatnonzero(outcome.labelled)
    known, subject = outcome.take(rows), episodes["subject_id"].to_numpy()[rows]
    if task.kind == "survival":
        return reliability(known, found.event_free[task.name][rows], subject, horizon=horizon(task))
    values = found.prediction[task.name][rows]
    line = calibration_line(known, values, subject, replicates=replicates, seed=seed)
    plain = {
        name: {key: float(number) if np.isfinite(number) else None for key, number in interval._asdict().items()}
        for name, interval in line.items()
    }
    return plain | reliability(known, values, subject)


def _beyond_the_last_edge(tasks: tuple[Task, ...], outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Share of the follow-up times that lie beyond what the model's intervals cover, by survival task."""
    found = {}
    for task in tasks:
        if task.kind == "survival" and task.name in outcomes:
            time = outcomes[task.name].value[outcomes[task.name].labelled]
            found[task.name] = {"last_edge_days": task.edges[-1], "beyond": float((time > task.edges[-1]).mean())}
    return found


def _group_rows(name: str, results: list[TaskResults], by: _Groups) -> list[dict[str, Cell]]:
    """The headline metric of every group, and its size."""
    pooled = next(result.pooled[MODEL] for result in results if result.name == name)
    headline = PRIMARY_METRIC[pooled.kind]
    if headline not in pooled.overall.metrics or pooled.kind == "regression":
        headline = "pearson"
    everything = {"indication": dict(pooled.by_indication)} | {
        what: {group: metrics.overall for group, metrics in members.items()} for what, members in by.items()
    }
    return [
        {
            "task": name,
            "by": what,
            "group": group,
            "subjects": metrics.subjects,
            metric_label(headline): metrics.metrics[headline],
        }
        for what, members in everything.items()
        if what != "treatment"
        for group, metrics in members.items()
    ]


def _calibration_tables(documents: Mapping[str, Any]) -> list[str]:
    lines: list[dict[str, Cell]] = []
    bins: list[dict[str, Cell]] = []
    for name, document in documents.items():
        found = document["calibration"]
        if "slope" in found:
            line = {f"calibration {part}": _interval(found[part]) for part in ("slope", "intercept")}
            lines.append({"task": name, **line})
        for row in found["reliability"]:
            bins.append({"task": name, **{part: row[part] for part in ("predicted", "observed", "subjects")}})
    return [summary_table(rows) for rows in (lines, bins) if rows]


def _interval(found: Mapping[str, float | None]) -> Interval:
    numbers = {part: float("nan") if number is None else number for part, number in found.items()}
    return Interval(**numbers)


def _labels(episodes: pl.DataFrame, name: str) -> Any:
    return episodes[name].to_numpy().astype(str) if name in episodes.columns else None


def _n_subjects(episodes: pl.DataFrame, rows: Int64) -> int:
    return int(episodes["subject_id"][rows].n_unique()) if len(rows) else 0
