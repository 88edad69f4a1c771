"""The page shows what was found, draws only groups large enough to leave, and names nobody."""

from pathlib import Path

import numpy as np
import pytest

from ican_ml.cohort.cohort import Cohort
from ican_ml.evaluation.outcome import Outcome
from ican_ml.targets import page
from ican_ml.targets.discover import discover
from ican_ml.targets.observations import Observations
from ican_ml.targets.page import Page, write_page


def test_the_page_shows_a_planted_effect_by_patient(
    sim_cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutation = sim_cohort.modalities["mutation"]
    best = int(np.bincount(mutation.matrix.indices, minlength=len(mutation.genes)).argmax())
    carriers = set(mutation.subject_id[mutation.matrix.row_ids()[mutation.matrix.indices == best]].tolist())
    has = np.array([subject in carriers for subject in sim_cohort.episodes["subject_id"].to_list()])
    given = sim_cohort.episodes["treatment"].to_list()
    classes = [{sim_cohort.classes[drug] for drug in drugs} for drugs in given]
    common = max(set().union(*classes), key=lambda name: sum(name in each for each in classes))
    helps = has & np.array([common in each for each in classes])
    value = np.random.default_rng(0).random(len(has)) < np.where(helps, 0.95, 0.05)
    observed = Observations.of(sim_cohort, Outcome.binary(value.astype(float)), by="class")
    table = discover(observed, permutations=200)
    shown = Page(title="planted", table=table, observed=observed, level=0.2)
    text = write_page(tmp_path / "a.html", shown)
    assert f" {mutation.genes[best]} " in text
    html = (tmp_path / "a.html").read_text()
    assert f"{mutation.genes[best]} (mutation)" in html
    assert "predictive" in html
    assert "not altered, " in html
    monkeypatch.setattr(page, "MIN_SUBJECTS", 10_000)
    write_page(tmp_path / "b.html", shown)
    assert "not altered, " not in (tmp_path / "b.html").read_text()
