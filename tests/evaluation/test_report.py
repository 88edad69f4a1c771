"""The report: complete, self-contained, small, and without anything that must not leave."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ican_ml.evaluation.curves import (
    LearningCurve,
    TaskCurves,
    risk_group_curves,
    roc_curve,
    selective_curve,
    task_curves,
)
from ican_ml.evaluation.evaluate import evaluate_task
from ican_ml.evaluation.metrics import auroc
from ican_ml.evaluation.outcome import Outcome
from ican_ml.evaluation.report import Report, Section, TaskReport, metric_label, write_report

ROWS = 3000
SUBJECT = 918273645000 + np.arange(ROWS)
INDICATION = np.where(np.arange(ROWS) % 2, "lung", "breast")


def task(kind: str) -> TaskReport:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=ROWS)
    probability = 1 / (1 + np.exp(-signal))
    if kind == "binary":
        outcome = Outcome.binary((rng.random(ROWS) < probability).astype(float))
        predictions = {"model": probability, "ridge": 0.5 * probability + 0.5 * rng.random(ROWS), "oracle": probability}
    elif kind == "survival":
        time = rng.exponential(900 * np.exp(-signal))
        outcome = Outcome.survival(np.minimum(time, 2000), time < 2000)
        predictions = {"model": signal, "ridge": signal + rng.normal(size=ROWS)}
    else:
        outcome = Outcome.regression(signal + rng.normal(size=ROWS))
        predictions = {"model": signal}
    results = {
        name: evaluate_task(outcome, values, subject_id=SUBJECT, indication=INDICATION, replicates=20)
        for name, values in predictions.items()
    }
    return TaskReport(
        name=f"{kind}_task",
        results=results,
        folds={name: [metrics, metrics] for name, metrics in results.items()},
        curves=task_curves(outcome, predictions, indication=INDICATION),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    epochs = np.arange(12.0)
    report = Report(
        title="Treatment response <demo>",
        description="Simulated cohort, 3,000 subjects",
        cohort={"Subjects": ROWS, "Licence": "none"},
        tasks=[task("binary"), task("survival"), task("regression")],
        learning=[LearningCurve(label="fold 0", epoch=epochs, train=np.exp(-epochs), tuning=np.exp(-epochs) + 0.1)],
        sections=[Section(title="Audit", rows=[{"by": "ridge & co", "r": 0.25}], notes=["Nothing <found>."])],
        notes=["Simulated data & nothing else."],
    )
    write_report(path, report)
    return path.read_text(encoding="utf-8")


def test_report_is_self_contained_and_small(page: str) -> None:
    assert len(page) < 1_500_000
    for forbidden in ("http", "//", "src=", "href=", "<script", "url(", "@import", "file:"):
        assert forbidden not in page, forbidden


def test_report_holds_no_subject_path_or_host(page: str) -> None:
    assert "918273645" not in page
    assert not re.search(r"(?<![\w<])/(home|tmp|work|root|usr|var)\b", page)
    assert str(Path.cwd()) not in page
    assert "nan" not in re.findall(r">([^<]*)<", page.lower())


def test_report_shows_every_section(page: str) -> None:
    for text in (
        "Treatment response &lt;demo&gt;",
        "Cohort",
        "3,000",
        "AUROC",
        "c-index",
        "RMSE",
        "folds",
        "per indication",
    ):
        assert text in page
    for chart in (
        "ROC",
        "Calibration",
        "Error among the most certain answers",
        "Survival by predicted risk",
        "Predicted against observed",
        "Loss by epoch",
    ):
        assert f'aria-label="{chart}' in page
    assert "Simulated data &amp; nothing else." in page
    for text in ("<h2>Audit</h2>", "ridge &amp; co", "0.250", "Nothing &lt;found&gt;."):
        assert text in page


def test_report_is_well_formed(page: str) -> None:
    class Balance(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open_tags: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag != "meta":
                self.open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert self.open_tags.pop() == tag

    parser = Balance()
    parser.feed(page)
    assert not parser.open_tags


def test_empty_report_is_still_a_page(tmp_path: Path) -> None:
    empty = TaskReport(name="none", results={}, curves=TaskCurves())
    write_report(tmp_path / "report.html", Report(title="Empty", tasks=[empty]))
    assert "<h1>Empty</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    outcome = Outcome.binary(np.full(4, np.nan))
    assert task_curves(outcome, {"model": np.zeros(4)}) == TaskCurves()


def test_roc_curve_has_the_area_of_auroc_and_few_points() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(2000) < 0.3).astype(float)
    score = rng.normal(size=2000) + y
    curve = roc_curve(y, score)
    assert len(curve.x) <= 200
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(auroc(y, score), abs=2e-3)


def test_the_most_certain_answers_are_seldom_wrong() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(2000)
    y = (rng.random(2000) < p).astype(float)
    curve = selective_curve(y, p)
    assert 20 < len(curve.x) <= 200
    assert 0.05 <= curve.x[0] < 0.06
    assert curve.x[-1] == 1
    assert curve.y[-1] == pytest.approx(((p >= 0.5) != (y == 1)).mean())
    assert curve.y[0] < 0.1 < 0.2 < curve.y[-1]
    tied = selective_curve(y, np.full(2000, 0.7))
    assert (len(tied.x), tied.y[0]) == (1, pytest.approx((y == 0).mean()))
    assert not len(selective_curve(y[:10], p[:10]).x), "too few to be told of"


def test_risk_groups_are_thirds_of_each_indication() -> None:
    rng = np.random.default_rng(0)
    indication = np.repeat(["mild", "grave"], 300)
    time = rng.exponential(np.where(indication == "mild", 2000.0, 200.0))
    risk = (indication == "grave") + 0.01 * rng.normal(size=600)
    curves = risk_group_curves(Outcome.survival(time, np.ones(600, bool)), risk, indication)
    ends = [curve.y[np.searchsorted(curve.x, 300.0)] for curve in curves]
    assert [curve.label for curve in curves] == ["low risk", "medium risk", "high risk"]
    assert max(ends) - min(ends) < 0.15


def test_section_as_text() -> None:
    text = Section(title="Audit", rows=[{"by": "ridge", "r": 0.25}], notes=["word " * 60]).text()
    assert text.splitlines()[:5] == ["Audit", "", "by         r", "-----  -----", "ridge  0.250"]
    assert max(map(len, text.splitlines())) <= 120


def test_metric_labels_spell_out_horizons() -> None:
    assert metric_label("brier_365d") == "Brier score at 365 days"
    assert metric_label("per_treatment_pearson") == "Per-treatment r"
