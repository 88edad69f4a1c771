"""The page of a sweep: trials, what mattered, charts; one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ican_ml.evaluation.report import Report, Section, write_report
from ican_ml.sweep.charts import charts
from ican_ml.sweep.summary import best_line, importance, rows

if TYPE_CHECKING:
    import optuna

TOO_FEW = "Too few trials are complete to say which parameters mattered."


def write_page(study: optuna.Study, path: Path) -> None:
    """Write it."""
    shares = importance(study)
    states = [trial.state.name for trial in study.trials]
    complete, pruned, failed = (states.count(name) for name in ("COMPLETE", "PRUNED", "FAIL"))
    best = best_line(study)
    said = f"{best[0].upper()}{best[1:]}."
    report = Report(
        title=f"Sweep {study.study_name}",
        description=f"{complete} trials complete, {pruned} pruned, {failed} failed or lost. {said}",
        sections=[
            Section(title="Search", charts=charts(study, shares), notes=() if shares else (TOO_FEW,)),
            Section(title="Trials", rows=rows(study)),
        ],
        notes=[
            "Each value is the loss on tuning subjects, the mean over folds; nothing that is held out was looked at.",
            "The best of many trials looks better than it is: only held-out subjects tell by how much.",
        ],
    )
    write_report(path, report)
