"""The package's data path learns neither from the future nor from other subjects, and a leak that does is named."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ican_ml import fold
from ican_ml.cohort.cohort import Cohort, latest_samples, read_cohort
from ican_ml.cohort.simulate import simulate
from ican_ml.config import Kind, OutcomeConfig, RunConfig, TaskConfig
from ican_ml.inputs.assemble import assemble
from ican_ml.inputs.fit import InputConfig, fit_schema
from ican_ml.invariants.checks import InvariantError
from ican_ml.invariants.derive import derive
from ican_ml.invariants.edits import EVERYTHING, change_events, change_samples, is_open
from ican_ml.invariants.leakage import check_leakage, leakage_checks
from ican_ml.model.patient_transformer import ModelConfig
from ican_ml.records.meds import read_records
from ican_ml.training import calibration
from ican_ml.training.config import TrainerConfig, TrainingConfig

SEEN = InputConfig(modalities=["mutation"], covariates=["indication", "line"], max_tokens=4, max_events=8)
CONFIG = RunConfig(
    inputs=SEEN,
    task=TaskConfig(outcomes=[OutcomeConfig(name="response"), OutcomeConfig(name="os", kind=Kind.survival)]),
    model=ModelConfig(width=16, heads=2, bottleneck_tokens=2),
    training=TrainingConfig(epochs=1, batch_size=64, wide_strengths=[300.0, 30.0]),
    trainer=TrainerConfig(threads=1),
)
small = partial(derive, config=replace(CONFIG, task=TaskConfig(outcomes=[OutcomeConfig(name="response")])))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a cohort as small as can be."""
    folder = tmp_path_factory.mktemp("whole") / "cohort"
    simulate(folder, subjects=120, seed=5)
    return folder


@pytest.fixture(scope="module")
def cohort(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the same with its smallest modality alone."""
    folder = tmp_path_factory.mktemp("part") / "cohort"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("expression.h5ad", "cnv.h5ad"))
    return folder


@settings(max_examples=2, derandomize=True, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_nothing_leaks_into_schema_and_inputs(whole: Path, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    config = replace(CONFIG, inputs=replace(SEEN, modalities=None))
    check_leakage(partial(derive, config=config), whole, tmp_path_factory.mktemp("leakage"), seed=seed)


def test_nothing_leaks_into_tuning_and_predictions(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "MIN_EPISODES", 1)
    checks = dict(leakage_checks(partial(derive, config=CONFIG, train=True), cohort, tmp_path, seed=3))
    for name in ("future", "held-out subjects"):  # the others decide nothing that training adds
        checks[name]()


def _statistics_of_everyone(cohort: Cohort, store: Any, _: pl.DataFrame, config: InputConfig, **settings: Any) -> Any:
    return fit_schema(cohort, store, cohort.episodes, config, **settings)


def _drugs_of_everyone(cohort: Cohort, store: Any, train: pl.DataFrame, config: InputConfig, **settings: Any) -> Any:
    drugs = cohort.episodes["treatment"].explode().drop_nulls().unique().sort().to_list()
    return replace(fit_schema(cohort, store, train, config, **settings), drugs=tuple(drugs))


def _codes_of_everyone(cohort: Cohort, store: Any, train: pl.DataFrame, config: InputConfig, **settings: Any) -> Any:
    schema = fit_schema(cohort, store, train, config, **settings)
    assert schema.vocabulary is not None
    return replace(schema, vocabulary=replace(schema.vocabulary, codes=store.codes))


def _statistics_of_tuning(cohort: Cohort, store: Any, train: pl.DataFrame, config: InputConfig, **settings: Any) -> Any:
    return fit_schema(cohort, store, cohort.episodes.filter(pl.col("split") != "held_out"), config, **settings)


def _one_second_more(cohort: Cohort, store: Any, episodes: pl.DataFrame, covariates: Any, **settings: Any) -> Any:
    later = episodes.with_columns(pl.col("prediction_time") + pl.duration(seconds=1))
    return assemble(cohort, store, later, covariates, **settings)


def _last_state_for_all(cohort: Cohort, store: Any, episodes: pl.DataFrame, covariates: Any, **settings: Any) -> Any:
    last = pl.col("prediction_time").max().over("subject_id")
    return assemble(cohort, store, episodes.with_columns(last), covariates, **settings)


EVERY = {"future", "future of an episode", "tuning subjects", "held-out subjects"}
PLANTED: list[tuple[str, Callable[..., Any], set[str], str]] = [
    ("fit_schema", _statistics_of_everyone, EVERY - {"future"}, "fitted"),
    ("fit_schema", _drugs_of_everyone, {"tuning subjects", "held-out subjects"}, "fitted.drugs"),
    ("fit_schema", _codes_of_everyone, EVERY, "fitted.vocabulary.codes"),
    ("fit_schema", _statistics_of_tuning, {"tuning subjects"}, "fitted"),
    ("assemble", _one_second_more, {"future", "future of an episode"}, "inputs.patient"),
    ("assemble", _last_state_for_all, {"future of an episode"}, "inputs.patient"),
]


@pytest.mark.parametrize(("step", "leak", "names", "where"), PLANTED)
def test_a_leak_is_found_and_named(
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    leak: Callable[..., Any],
    names: set[str],
    where: str,
) -> None:
    monkeypatch.setattr(fold, step, leak)
    with pytest.raises(InvariantError) as caught:
        check_leakage(small, cohort, tmp_path)
    failures = {failure.invariant: failure for failure in caught.value.failures}
    assert failures.keys() == names
    for failure in failures.values():
        assert failure.expected.startswith(f"the same {where}")
        assert failure.difference > 0
        assert "subjects changed" in failure.changed


def test_the_culprit_is_told_apart(cohort: Path, tmp_path: Path) -> None:
    def build(folder: Path) -> dict[str, Any]:
        episodes = pl.read_parquet(folder / "episodes.parquet")
        held_out = (episodes["split"] == "held_out").to_numpy()
        rows = {"train": np.flatnonzero(~held_out), "tuning": np.array([], int), "held_out": np.flatnonzero(held_out)}
        return {"split": rows, "fitted": 1, "tuned": float(episodes["os_time"].sum())}

    with pytest.raises(InvariantError) as caught:
        check_leakage(build, cohort, tmp_path)
    (failure,) = caught.value.failures
    assert (failure.invariant, failure.expected) == ("held-out subjects", "the same tuned")
    assert failure.changed.startswith("outcomes of ")
    assert failure.difference > 0.01


def test_checks_come_one_by_one_and_leave_the_cohort_alone(cohort: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in cohort.rglob("*") if path.is_file()}
    checks = dict(leakage_checks(small, cohort, tmp_path))
    assert list(checks) == ["future", "future of an episode", "tuning subjects", "held-out subjects"]
    checks["held-out subjects"]()
    assert {path: path.read_bytes() for path in cohort.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.iterdir())


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "cohort")
    return tmp_path / "cohort"


def _last(episodes: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    last = episodes.sort("prediction_time").unique("subject_id", keep="last", maintain_order=True)
    return last["subject_id"].to_numpy(), last["prediction_time"].to_numpy()


def test_the_future_is_changed_and_the_past_is_not(copied: Path, whole: Path) -> None:
    episodes = pl.read_parquet(whole / "episodes.parquet")
    since = episodes.group_by("subject_id", maintain_order=True).agg(pl.col("prediction_time").max().alias("since"))
    for edit in (change_events, change_samples):
        edit(copied, since, np.random.default_rng(0))
    before, after = (read_records(path) for path in (whole, copied))
    assert len(after.code) != len(before.code)
    earliest = np.datetime64(since["since"].min(), "us")
    assert (after.time == earliest + np.timedelta64(1, "s")).any()
    old, new = (read_cohort(path) for path in (whole, copied))
    for name, modality in old.modalities.items():
        other, n = new.modalities[name], modality.matrix.n_rows
        assert other.matrix.n_rows > n
        assert np.array_equal(np.isnat(other.sample_time[:n]), np.isnat(modality.sample_time))
        known = latest_samples(modality, *_last(episodes))
        assert np.array_equal(latest_samples(other, *_last(episodes)), known)
        assert np.array_equal(other.matrix.take(known).values, modality.matrix.take(known).values)


def test_everything_of_a_subject_is_changed_and_nothing_of_another(copied: Path, whole: Path) -> None:
    episodes = pl.read_parquet(whole / "episodes.parquet")
    chosen = episodes["subject_id"].unique().sort()[::2]
    since = pl.DataFrame({"subject_id": chosen, "since": pl.Series([None] * len(chosen), dtype=pl.Datetime("us"))})
    for edit in EVERYTHING:
        edit(copied, since, np.random.default_rng(0))
    changed = pl.read_parquet(copied / "episodes.parquet")
    where = is_open(episodes, since, "prediction_time")
    assert changed.filter(~where).equals(episodes.filter(~where))
    for name in ("treatment", "indication", "line", "site", "response", "os_time", "os_event"):
        assert (changed[name] != episodes[name]).to_list() == where.to_list(), name
    for name in ("subject_id", "prediction_time", "split"):
        assert changed[name].equals(episodes[name])
    old, new = (read_cohort(path) for path in (whole, copied))
    for name, modality in old.modalities.items():
        other = new.modalities[name]
        same = []
        for row in range(modality.matrix.n_rows):
            was, now = modality.matrix.take([row]), other.matrix.take([row])
            same.append(np.array_equal(was.indices, now.indices) and np.array_equal(was.values, now.values))
        assert same == (~np.isin(modality.subject_id, chosen.to_numpy())).tolist()
