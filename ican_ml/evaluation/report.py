"""The run report: one self-contained HTML page that may leave a secure environment.

In: a `Report` of aggregates, no subject, path or host among them. Out: a file with inline style and inline SVG, no
script and no link, readable in any browser and on paper. Its contents follow TRIPOD+AI (Collins et al., BMJ 2024): who
was studied, how many events, discrimination, calibration and their uncertainty, overall and per indication.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ican_ml.evaluation.bootstrap import Interval
from ican_ml.evaluation.curves import Curve, LearningCurve, TaskCurves
from ican_ml.evaluation.evaluate import PRIMARY_METRIC, GroupMetrics, TaskMetrics, mean_and_sd
from ican_ml.evaluation.svg import PALETTE, Chart, Drawing
from ican_ml.evaluation.table import Cell, MeanSd, format_cell, summary_table

METRIC_NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "brier": "Brier score",
    "calibration_error": "Calibration error",
    "c_index": "c-index",
    "c_index_by_pairs": "c-index (by pairs)",
    "rmse": "RMSE",
    "pearson": "Pearson r",
    "per_treatment_pearson": "Per-treatment r",
}

_TEXT_WIDTH = 110
_RISK_COLORS = (PALETTE[2], PALETTE[1], PALETTE[5])


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskReport:
    """One task's results.

    Attributes
    ----------
    name
        The task.
    results
        model -> metrics on the held-out rows, the product's own model first.
    folds
        model -> metrics of each fold; empty without folds.
    curves
        What is drawn.
    """

    name: str
    results: Mapping[str, TaskMetrics]
    folds: Mapping[str, Sequence[TaskMetrics]] = field(default_factory=dict)
    curves: TaskCurves = field(default_factory=TaskCurves)


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A table with a heading, remarks and charts below it, for the page and, as :meth:`text`, for a terminal.

    Attributes
    ----------
    rows
        Column -> cell; the first column names the row.
    charts
        For the page alone.
    """

    title: str
    rows: Sequence[Mapping[str, Cell]] = ()
    notes: Sequence[str] = ()
    charts: Sequence[Drawing] = ()

    def text(self) -> str:
        """Plain text."""
        table = [summary_table(self.rows)] if self.rows else []
        return "\n\n".join([self.title, *table, *(textwrap.fill(note, _TEXT_WIDTH) for note in self.notes)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything the page shows.

    Attributes
    ----------
    title, description
        Heading and one sentence below it.
    cohort
        Label -> number or text, for the cohort table.
    tasks
        One section each.
    learning
        Loss by epoch, one chart per fit.
    sections
        Further tables.
    notes
        Closing remarks, one paragraph each.
    """

    title: str
    description: str = ""
    cohort: Mapping[str, str | int | float] = field(default_factory=dict)
    tasks: Sequence[TaskReport] = ()
    learning: Sequence[LearningCurve] = ()
    sections: Sequence[Section] = ()
    notes: Sequence[str] = ()


def write_report(path: Path, report: Report) -> None:
    """Write the page, UTF-8, replacing what was there."""
    Path(path).write_text(render_report(report), encoding="utf-8")


def render_report(report: Report) -> str:
    """The page as HTML text."""
    title = html.escape(report.title)
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<header><h1>{title}</h1>",
        f"<p>{html.escape(report.description)}</p>" if report.description else "",
        "</header>",
    ]
    if report.cohort:
        rows = [[label, value] for label, value in report.cohort.items()]
        parts += ["<section><h2>Cohort</h2>", _table((), rows), "</section>"]
    for task in report.tasks:
        parts += ["<section>", *_task_section(task), "</section>"]
    if report.learning:
        charts = [_learning_chart(curve) for curve in report.learning]
        parts += ["<section><h2>Training</h2>", _figures(charts), "</section>"]
    for section in report.sections:
        parts += ["<section>", *_section(section), "</section>"]
    if report.notes:
        parts += ["<section><h2>Notes</h2>", *(f"<p>{html.escape(note)}</p>" for note in report.notes), "</section>"]
    return "\n".join(part for part in [*parts, "</body>\n</html>\n"] if part)


def metric_label(name: str) -> str:
    """How a metric is called in print; horizons such as `brier_365d` are spelled out."""
    stem, _, horizon = name.rpartition("_")
    if name not in METRIC_NAMES and stem in METRIC_NAMES and horizon.endswith("d"):
        return f"{METRIC_NAMES[stem]} at {horizon[:-1]} days"
    return METRIC_NAMES.get(name, name.replace("_", " "))


def _task_section(task: TaskReport) -> Iterable[str]:
    yield f"<h2>{html.escape(task.name.replace('_', ' '))}</h2>"
    if task.results:
        first = next(iter(task.results.values()))
        yield f"<p>{html.escape(_size(first.overall))}; intervals are 95%, resampled by subject.</p>"
        names = _metric_names(metrics.overall for metrics in task.results.values())
        rows: list[list[Cell]] = [
            [model, *(metrics.overall.metrics.get(name) for name in names)] for model, metrics in task.results.items()
        ]
        yield _table(["Model", *map(metric_label, names)], rows)
    if any(len(folds) > 1 for folds in task.folds.values()):
        yield f"<h3>Over {max(map(len, task.folds.values()))} folds, mean ± standard deviation</h3>"
        yield _fold_table(task.folds)
    yield from _indication_table(task.results)
    yield _figures(_task_charts(task.curves))


def _section(section: Section) -> Iterable[str]:
    yield f"<h2>{html.escape(section.title)}</h2>"
    if section.rows:
        head = list(dict.fromkeys(name for row in section.rows for name in row))
        yield _table(head, [[row.get(name) for name in head] for row in section.rows])
    yield from (f"<p>{html.escape(note)}</p>" for note in section.notes)
    yield _figures(section.charts)


def _fold_table(folds: Mapping[str, Sequence[TaskMetrics]]) -> str:
    summaries = {model: mean_and_sd(metrics) for model, metrics in folds.items()}
    names = list(dict.fromkeys(name for summary in summaries.values() for name in summary))
    rows: list[list[Cell]] = [
        [model, *(MeanSd(*summary[name]) if name in summary else None for name in names)]
        for model, summary in summaries.items()
    ]
    return _table(["Model", *map(metric_label, names)], rows)


def _indication_table(results: Mapping[str, TaskMetrics]) -> Iterable[str]:
    indications = sorted({name for metrics in results.values() for name in metrics.by_indication})
    if len(indications) < 2:
        return
    first = next(iter(results.values()))
    name = PRIMARY_METRIC[first.kind]
    if name not in first.overall.metrics:
        name = "pearson"
    rows: list[list[Cell]] = []
    for indication in indications:
        groups = {model: metrics.by_indication.get(indication) for model, metrics in results.items()}
        known = next(group for group in groups.values() if group is not None)
        values: list[Interval | None] = [group.metrics.get(name) if group else None for group in groups.values()]
        events: list[Cell] = [] if first.kind == "regression" else [known.events]
        rows.append([indication, known.subjects, *events, *values])
    yield f"<h3>{metric_label(name)} per indication</h3>"
    counts = ["Subjects"] if first.kind == "regression" else ["Subjects", "Events"]
    yield _table(["Indication", *counts, *results], rows)


def _metric_names(groups: Iterable[GroupMetrics]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group.metrics))


def _size(group: GroupMetrics) -> str:
    events = f", {group.events:,} with the event" if group.events else ""
    return f"{group.rows:,} held-out episodes of {group.subjects:,} subjects{events}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    lines = ['<div class="scroll"><table>']
    if head:
        lines.append("<thead><tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in head) + "</tr></thead>")
    lines.append("<tbody>")
    for row in rows:
        cells = "".join(f"<td>{html.escape(format_cell(value))}</td>" for value in row[1:])
        lines.append(f'<tr><th scope="row">{html.escape(format_cell(row[0]))}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody></table></div>"])


def _figures(charts: Sequence[Drawing]) -> str:
    if not charts:
        return ""
    figures = "\n".join(f"<figure>{chart.render()}</figure>" for chart in charts)
    return f'<div class="figures">\n{figures}\n</div>'


def _task_charts(curves: TaskCurves) -> list[Chart]:
    charts = []
    unit = (0.0, 1.0)
    if curves.roc:
        chart = Chart(title="ROC", x_label="1 - specificity", y_label="Sensitivity", x_range=unit, y_range=unit)
        charts.append(_draw(chart, curves.roc, dots=False))
    if curves.calibration:
        chart = Chart(
            title="Calibration",
            x_label="Predicted probability",
            y_label="Observed frequency",
            x_range=unit,
            y_range=unit,
        )
        charts.append(_draw(chart, curves.calibration, dots=True))
    if curves.selective:
        top = max([0.1, *(float(curve.y.max(initial=0.0)) for curve in curves.selective)])
        chart = Chart(
            title="Error among the most certain answers",
            x_label="Share answered, most certain first",
            y_label="Wrong answers",
            x_range=unit,
            y_range=(0.0, 1.1 * top),
        )
        charts.append(_draw(chart, curves.selective, dots=False, diagonal=False))
    if curves.survival:
        years = max(float(curve.x.max(initial=0.0)) for curve in curves.survival) / 365.25
        chart = Chart(
            title="Survival by predicted risk",
            x_label="Years",
            y_label="Event-free share",
            x_range=(0.0, years),
            y_range=unit,
            legend_at="upper right",
        )
        for curve, color in zip(curves.survival, _RISK_COLORS, strict=False):
            chart.steps(curve.x / 365.25, curve.y, color=color, label=curve.label)
        charts.append(chart)
    if curves.density is not None:
        limits = (float(curves.density.edges[0]), float(curves.density.edges[-1]))
        chart = Chart(
            title="Predicted against observed", x_label="Observed", y_label="Predicted", x_range=limits, y_range=limits
        )
        chart.cells(curves.density.edges, curves.density.counts, color=PALETTE[0])
        chart.diagonal()
        charts.append(chart)
    return charts


def _draw(chart: Chart, curves: Sequence[Curve], *, dots: bool, diagonal: bool = True) -> Chart:
    if diagonal:
        chart.diagonal()
    for number, curve in enumerate(curves):
        color = PALETTE[number % len(PALETTE)]
        chart.line(curve.x, curve.y, color=color, label=curve.label, dots=dots, dashed=curve.label == "oracle")
    return chart


def _learning_chart(curve: LearningCurve) -> Chart:
    losses = np.concatenate([curve.train, curve.tuning])
    losses = losses[np.isfinite(losses)]
    low, high = (float(losses.min()), float(losses.max())) if len(losses) else (0.0, 1.0)
    margin = 0.05 * (high - low)
    epochs = (float(curve.epoch.min(initial=0)), float(curve.epoch.max(initial=1)))
    chart = Chart(
        title=f"Loss by epoch{': ' + curve.label if curve.label else ''}",
        x_label="Epoch",
        y_label="Loss",
        x_range=epochs,
        y_range=(low - margin, high + margin),
        legend_at="upper right",
    )
    chart.line(curve.epoch, curve.train, color=PALETTE[3], label="training")
    if len(curve.tuning):
        chart.line(curve.epoch, curve.tuning, color=PALETTE[0], label="tuning")
    return chart


_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.5rem 4rem; background: #fff; color: #1c2330;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; padding-top: 1.1rem; border-top: 1px solid #dfe3e8; }
h2::first-letter { text-transform: uppercase; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; color: #47505e; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .38rem .9rem .38rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid #edf0f3; }
th { font-weight: 600; }
tr > :first-child { text-align: left; }
thead th { color: #47505e; border-bottom: 1px solid #b9c1cb; }
tbody th { font-weight: 500; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.2rem;
  margin-top: 1.4rem; }
figure { margin: 0; max-width: 30rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit; fill: #47505e; }
.chart-title { font-size: 13px; font-weight: 600; fill: #1c2330; }
.axis-label, .legend { font-size: 11.5px; }
.tick { font-size: 10.5px; }
.axis { fill: none; stroke: #8a8f98; }
.grid { stroke: #edf0f3; }
.reference { fill: none; stroke: #b9c1cb; stroke-dasharray: 3 3; }
@media print { body { padding: 0; font-size: 11px; } section { break-inside: avoid-page; } }
"""
