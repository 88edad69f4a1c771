"""The targets as people read them: a page of tables and charts, and its summary for the terminal.

What leaves the environment with it are aggregates: no subject, and no curve over fewer than `MIN_SUBJECTS` of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from ican_ml.evaluation.bootstrap import Interval
from ican_ml.evaluation.evaluate import MIN_SUBJECTS
from ican_ml.evaluation.report import Report, Section, metric_label, write_report
from ican_ml.evaluation.svg import PALETTE, Chart
from ican_ml.evaluation.table import Cell
from ican_ml.targets.observations import Observations
from ican_ml.targets.panel import Marker

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
LINES = {
    "association": "z",
    "shared profiles": "likeness",
    "virtual inhibition": "inhibition",
    "attribution": "attribution",
}
_SHOWN, _DRAWN, _NAMED, _DRAWN_APART, _FIRST = 20, 1500, 8, 6, 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What is shown.

    Attributes
    ----------
    table
        See :mod:`ican_ml.targets.discover`.
    level
        False discovery rate.
    panel
        Chosen on all episodes.
    worth
        Scorer -> metric -> interval on held-out episodes, where each fold chose its panel on its training episodes.
    """

    title: str
    table: pl.DataFrame
    observed: Observations
    level: float
    panel: Sequence[Marker] = ()
    worth: Mapping[str, Mapping[str, Interval]] | None = None


def write_page(path: Path, page: Page) -> str:
    """Write the page; returns its tables as plain text."""
    agreement = _agreement(page.table)
    sections = [*found_sections(page.table, page.level), *([agreement] if agreement.rows else [])]
    if page.worth is not None:
        sections += _panel_sections(page)
    sections[0] = replace(sections[0], charts=[_volcano(page.table, page.level)])
    curves = _effects(page)
    shown = [*sections, Section(title="Effect by patient", notes=[_EFFECT_NOTE], charts=curves)] if curves else sections
    write_report(path, Report(title=f"{page.title}: targets and biomarkers", description=_ABOUT, sections=shown))
    return "\n\n".join(section.text() for section in sections)


def found_sections(table: pl.DataFrame, level: float) -> list[Section]:
    """What is found at a false discovery rate: those in whom the gene is higher or altered benefit more, or less."""
    by = table.columns[0]
    sections = []
    for sign, title in ((1, "benefit more"), (-1, "benefit less")):
        told = table.filter((pl.col("q") <= level) & (pl.col("z") * sign > 0)).sort("q", pl.col("z") * -sign)
        rows: list[dict[str, Cell]] = [_row(row, by, level) for row in told.head(_SHOWN).iter_rows(named=True)]
        note = f"{len(told):,} at a false discovery rate of {level:g}."
        more = f" The first {_SHOWN} are shown." if len(told) > _SHOWN else ""
        sections.append(
            Section(title=f"Those in whom the gene is higher or altered {title}", rows=rows, notes=[note + more])
        )
    return sections


def _row(row: Mapping[str, object], by: str, level: float) -> dict[str, Cell]:
    def number(name: str) -> float:
        return float(row[name]) if row[name] is not None else float("nan")  # type: ignore[arg-type]

    kinds = [
        kind for kind, name in (("predictive", "interaction_q"), ("prognostic", "prognosis_q")) if number(name) <= level
    ]
    found: dict[str, Cell] = {
        by.capitalize(): str(row[by]),
        "Gene": str(row["gene"]),
        "By": str(row["modality"]),
        "Effect": Interval(number("effect"), number("effect_low"), number("effect_high")),
        "z": number("z"),
        "q": number("q"),
        "Marker": " and ".join(kinds) or "-",
        "Most in": str(row["indication"] or "-"),
        "Rank": int(number("rank")),
        "Stability": number("stability"),
        "Target": "listed" if row["known"] else "-",
    }
    return found | ({"Lists": str(row["lists"] or "-")} if "lists" in row else {})


def _volcano(table: pl.DataFrame, level: float) -> Chart:
    leads = table.filter((pl.col("lead") == pl.col("gene")) & pl.col("effect").is_not_null()).sort("p").head(_DRAWN)
    effect, height = leads["effect"].to_numpy(), leads["z"].abs().to_numpy()
    widest = float(np.abs(effect).max(initial=1e-9)) * 1.1
    chart = Chart(
        title="Effect of gene on benefit, each drug by itself",
        x_label="Effect: below 0 less benefit, above 0 more",
        y_label="|z|",
        x_range=(-widest, widest),
        y_range=(0.0, float(height.max(initial=1.0)) * 1.1),
        legend_at="upper left",
    )
    found, listed = (leads["q"] <= level).fill_null(False).to_numpy(), leads["known"].to_numpy()
    chart.points(effect[~found], height[~found], color=PALETTE[3], label="not found")
    chart.points(effect[found & ~listed], height[found & ~listed], color=PALETTE[0], label="found")
    chart.points(effect[found & listed], height[found & listed], color=PALETTE[1], label="found, listed")
    for x, y, gene in leads.sort("z").select("effect", pl.col("z").abs(), "gene").tail(_NAMED).iter_rows():
        chart.text(x, y, gene)
    return chart


def _agreement(table: pl.DataFrame) -> Section:
    """By pair of lines: correlation of the ranks within a drug, and how many of the first ten they share."""
    by = table.columns[0]
    lines = {name: column for name, column in LINES.items() if column in table.columns}
    parts = [part.select(lines.values()).cast(pl.Float64).to_numpy() for part in table.partition_by(by)]
    rows: list[dict[str, Cell]] = []
    for i, first in enumerate(lines):
        for j, second in enumerate(lines):
            if j <= i:
                continue
            each = [found for part in parts if (found := _agree(part[:, i], part[:, j])) is not None]
            if each:
                correlation, shared = np.mean(each, axis=0).tolist()
                rows.append({"Line": first, "Beside": second, "Spearman": correlation, "Shared of ten": shared})
    return Section(
        title="Agreement of the lines of evidence",
        rows=rows,
        notes=["Mean over drugs." if by == "drug" else "Mean over classes."],
    )


def _agree(first: Float64, second: Float64) -> tuple[float, float] | None:
    from scipy.stats import spearmanr

    known = np.isfinite(first) & np.isfinite(second)
    if known.sum() < 2 * _FIRST or np.ptp(first[known]) == 0 or np.ptp(second[known]) == 0:
        return None
    best = [set(np.argsort(-each[known], kind="stable")[:_FIRST].tolist()) for each in (first, second)]
    return float(spearmanr(first[known], second[known]).statistic), float(len(best[0] & best[1]))


def _effects(page: Page) -> list[Chart]:
    """Of the strongest finds, how benefit spreads over those who have the gene altered or high, and over the others."""
    observed, table = page.observed, page.table
    told = table.filter(pl.col("q") <= page.level).sort("q", pl.col("z").abs() * -1)
    names = [m.name for m in observed.values.modalities]
    charts: list[Chart] = []
    for row in told.iter_rows(named=True):
        if len(charts) == _DRAWN_APART:
            break
        rows = observed.rows(observed.names.index(row[table.columns[0]]))
        m = names.index(row["modality"])
        value = observed.values.of(observed.samples[rows])[:, observed.genes.index(row["gene"]), m]
        groups = _groups(value, binary=observed.values.modalities[m].kind == "binary")
        each = {label: rows[chosen] for label, chosen in groups.items()}
        if all(len(np.unique(observed.patient[some])) >= MIN_SUBJECTS for some in each.values()):
            charts.append(_spread(f"{row[table.columns[0]]}: {row['gene']} ({row['modality']})", each, observed))
    return charts


def _groups(value: npt.NDArray[np.float32], *, binary: bool) -> dict[str, npt.NDArray[np.bool_]]:
    known = np.isfinite(value)
    if binary:
        return {"altered": known & (value != 0), "not altered": known & (value == 0)}
    low, high = np.quantile(value[known], [1 / 3, 2 / 3]) if known.any() else (0.0, 0.0)
    return {"higher": known & (value > high), "lower": known & (value <= low)}


def _spread(title: str, rows: Mapping[str, Int64], observed: Observations) -> Chart:
    share = np.linspace(0.05, 0.95, 19)
    curves = {label: np.quantile(observed.benefit[some], share) for label, some in rows.items()}
    every = np.concatenate(list(curves.values()))
    chart = Chart(
        title=title,
        x_label="Benefit beyond drug, indication and patient",
        y_label="Share of patients below",
        x_range=(float(every.min()), float(every.max())),
        y_range=(0.0, 1.0),
    )
    for color, (label, curve) in zip(PALETTE[1::-1], curves.items(), strict=False):
        chart.line(curve, share, color=color, label=f"{label}, {len(rows[label]):,}")
    return chart


def _panel_sections(page: Page) -> list[Section]:
    assert page.worth is not None
    markers: list[dict[str, Cell]] = [
        {
            "Gene": marker.gene,
            "By": marker.modality,
            "Under": marker.under or "any treatment",
            "Benefit": "rises" if marker.rises else "falls",
            "Picked": f"{marker.picked:.0%}",
        }
        for marker in page.panel
    ]
    worth: list[dict[str, Cell]] = [
        {"By": name, **{metric_label(metric): value for metric, value in metrics.items()}}
        for name, metrics in page.worth.items()
    ]
    return [
        Section(title="A short panel of markers", rows=markers, notes=[_PANEL_NOTE]),
        Section(title="What the panel is worth", rows=worth, notes=[_WORTH_NOTE]),
    ]


_ABOUT = (
    "Which genes tell who benefits from which drug. Associations in data that were observed, not proof of cause; "
    "research software, not a medical device."
)
_EFFECT_NOTE = f"Drawn where both groups have at least {MIN_SUBJECTS} subjects."
_PANEL_NOTE = "Picked by the lasso in most of 100 random halves of the patients; chosen here on all episodes."
_WORTH_NOTE = (
    "On held-out episodes, each fold's panel chosen on its training episodes alone: a linear model on the panel, "
    "regimen and indication; on regimen and indication alone; and the full model. Intervals are 95%, by subject."
)
