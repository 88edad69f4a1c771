"""The panel of markers: what was planted is picked; outcomes of other than training episodes are not looked at."""

from dataclasses import replace

import numpy as np

from ican_ml.cohort.cohort import Cohort
from ican_ml.evaluation.outcome import Outcome
from ican_ml.targets.observations import Observations
from ican_ml.targets.panel import choose_panel, panel_columns


def planted(cohort: Cohort) -> tuple[Observations, str]:
    """Responses that rise with a common mutation, whatever the drug."""
    mutation = cohort.modalities["mutation"]
    best = int(np.bincount(mutation.matrix.indices, minlength=len(mutation.genes)).argmax())
    carriers = set(mutation.subject_id[mutation.matrix.row_ids()[mutation.matrix.indices == best]].tolist())
    rng = np.random.default_rng(0)
    has = np.array([subject in carriers for subject in cohort.episodes["subject_id"].to_list()])
    value = (rng.random(len(has)) < np.where(has, 0.8, 0.2)).astype(float)
    return Observations.of(cohort, Outcome.binary(value), by="class"), mutation.genes[best]


def test_a_planted_marker_is_picked(sim_cohort: Cohort) -> None:
    observed, gene = planted(sim_cohort)
    rows = np.arange(len(observed.benefit))
    panel = choose_panel(observed, rows, seed=0)
    assert gene in {marker.gene for marker in panel}
    assert panel == choose_panel(observed, rows, seed=0)
    marker = next(marker for marker in panel if marker.gene == gene)
    assert (marker.modality, marker.rises) == ("mutation", True)
    assert marker.picked >= 0.6
    columns = panel_columns(observed, rows, panel)
    assert columns.shape == (len(rows), len(panel))
    assert np.isfinite(columns).all()


def test_nothing_is_chosen_where_there_is_nothing(sim_cohort: Cohort) -> None:
    few = []
    for seed in range(3):
        value = np.random.default_rng(seed).random(len(sim_cohort.episodes)) < 0.4
        observed = Observations.of(sim_cohort, Outcome.binary(value.astype(float)))
        few.append(len(choose_panel(observed, np.arange(len(value)), seed=seed)))
    assert np.mean(few) < 2


def test_benefits_of_other_episodes_do_not_matter(sim_cohort: Cohort) -> None:
    observed, _ = planted(sim_cohort)
    rows = np.arange(0, len(observed.benefit), 2)
    other = observed.benefit.copy()
    other[1::2] = np.random.default_rng(1).normal(size=len(other[1::2]))
    changed = replace(observed, benefit=other)
    assert choose_panel(observed, rows, seed=3) == choose_panel(changed, rows, seed=3)
