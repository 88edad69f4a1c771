"""Whole runs on a small simulated cohort: what they leave, what they repeat, and what never leaves ``private/``."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
import torch

from ican_ml import fitting, pipeline
from ican_ml.bundle.export import export_bundle
from ican_ml.cli import main
from ican_ml.config import (
    CohortConfig,
    EvaluationConfig,
    Kind,
    LandmarksConfig,
    LinesConfig,
    Method,
    OutcomeConfig,
    PretrainingConfig,
    RunConfig,
    SplitConfig,
    TaskConfig,
)
from ican_ml.inputs.fit import InputConfig
from ican_ml.model.patient_transformer import ModelConfig
from ican_ml.release import load_fitted
from ican_ml.run_folder import RESULT
from ican_ml.training import calibration
from ican_ml.training.config import TrainerConfig, TrainingConfig
from ican_ml.training.resistance import Resistance

FIRST_ID, STEP = 70_310_452_900_000, 7_919
_ID_TABLES = ("episodes.parquet", "truth.parquet", "records/metadata/subject_splits.parquet")


@pytest.fixture(scope="module")
def cohort(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated cohort under subject ids of 14 digits, with a column of folds and a regression outcome."""
    path = tmp_path_factory.mktemp("cohorts") / "planted"
    shutil.copytree(simulated, path)
    for table in [path / name for name in _ID_TABLES] + list(path.glob("records/data/*/*.parquet")):
        frame = pl.read_parquet(table)
        frame.with_columns(pl.col("subject_id") * STEP + FIRST_ID).write_parquet(table)
    for omics in path.glob("omics/*.h5ad"):
        with h5py.File(omics, "r+") as file:
            file["obs/subject_id"][...] = FIRST_ID + STEP * file["obs/subject_id"][...]
    episodes = pl.read_parquet(path / "episodes.parquet")
    fold = (pl.col("subject_id") % 2).alias("fold")
    episodes.with_columns(fold, (pl.col("os_time") / 100).alias("sensitivity")).write_parquet(path / "episodes.parquet")
    return path


def configured(cohort: Path, runs: Path, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "name": "tiny",
        "runs": str(runs),
        "cohort": CohortConfig(path=str(cohort)),
        "inputs": InputConfig(modalities=["mutation"], max_tokens=4, max_events=8, survival_bins=4),
        "model": ModelConfig(width=16, heads=2, bottleneck_tokens=2),
        "training": TrainingConfig(epochs=1, batch_size=64, wide_strengths=[300.0]),
        "trainer": TrainerConfig(threads=1),
        "evaluation": EvaluationConfig(replicates=20, baselines=False, permutations=0),
    }
    return RunConfig(**settings | changes)


def with_landmarks(config: RunConfig, per_episode: int) -> RunConfig:
    return replace(config, cohort=replace(config.cohort, landmarks=LandmarksConfig(per_episode=per_episode)))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the export, which the tests of the bundle make often enough."""
    monkeypatch.setattr(pipeline, "_export", lambda *_: 0.0)
    monkeypatch.setattr(pipeline, "_ask_one_patient", lambda *_: None)


def metrics_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return document


def test_resistance_that_was_found_is_reported(
    cohort: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Resistance(task="response", modality="mutation", feature="NRAS", drug_class="L01EC", share=0.65)
    monkeypatch.setattr("ican_ml.training.loop.fit_resistance", lambda *_: [found])
    model = ModelConfig(width=16, heads=2, bottleneck_tokens=2, resistance=True)
    folder = pipeline.run(configured(cohort, tmp_path, model=model))
    assert metrics_of(folder)["resistance"] == [asdict(found) | {"folds": 1}]
    for name in ("log.txt", "report.html"):
        assert "NRAS (mutation)" in (folder / name).read_text()
    assert metrics_of(pipeline.run(configured(cohort, tmp_path, name="without")))["resistance"] == []


def test_the_audit_of_a_cohort_tells_of_no_subject(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slim = tmp_path / "slim"
    shutil.copytree(cohort, slim, ignore=shutil.ignore_patterns("expression.h5ad", "cnv.h5ad"))
    ask = ["audit", str(slim), "--outcome", "os", "--permutations", "2"]
    main(ask)
    printed = capsys.readouterr().out
    main([*ask, "--json"])
    document = capsys.readouterr().out
    found = json.loads(document)
    assert [(p["outcome"], p["metric"], p["scorer"]) for p in found["permutations"]] == [("os", "c_index", "ridge")]
    assert found["bookkeeping"][0]["outcome"] == "os"
    subjects = pl.read_parquet(cohort / "episodes.parquet")["subject_id"].unique().to_list()
    for text in (printed, document):
        assert not [subject for subject in subjects if str(subject) in text]
        assert str(tmp_path) not in text


def test_a_second_call_goes_on_and_a_changed_configuration_starts_anew(
    cohort: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(cohort, tmp_path)
    done: list[str] = []
    original = fitting.fit

    def counted(*args: Any, **settings: Any) -> Any:
        done.append(settings["folder"].parent.name)
        return original(*args, **settings)

    monkeypatch.setattr(fitting, "fit", counted)
    first = (pipeline.run(config) / "metrics.json").read_bytes()
    assert done == ["split"]
    assert (pipeline.run(config) / "metrics.json").read_bytes() == first
    assert done == ["split"]
    pipeline.run(replace(config, training=replace(config.training, weight_decay=0.2)))
    assert done == ["split"] * 2
    assert (pipeline.run(replace(config, name="again")) / "metrics.json").read_bytes() == first
    assert done == ["split"] * 3


def test_a_bundle_is_exported_again_only_where_it_is_not_the_one_that_was(
    cohort: Path, sim_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[Path] = []

    def export(network: Any, schema: Any, folder: Path, **_: Any) -> float:
        exported.append(Path(shutil.copytree(sim_bundle, folder, dirs_exist_ok=True)))
        return 0.0

    monkeypatch.setattr("ican_ml.release.export_bundle", export)
    monkeypatch.setattr(pipeline, "parity", lambda *_: 0.0)
    monkeypatch.setattr(pipeline, "_ask_one_patient", lambda *_: None)
    config = configured(cohort, tmp_path)
    bundle = pipeline.run(config) / "bundle"
    pipeline.run(config)
    assert exported == [bundle]
    (bundle / "model.onnx").write_bytes(b"another")
    pipeline.run(config)
    assert exported == [bundle] * 2


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrate on the few tuning episodes that there are."""
    monkeypatch.setattr(calibration, "MIN_EPISODES", 3)


def test_two_tasks_on_every_fold(cohort: Path, tmp_path: Path, quick: None, calibrated: None) -> None:
    tasks = TaskConfig(outcomes=[OutcomeConfig(name="response"), OutcomeConfig(name="os", kind=Kind.survival)])
    folder = pipeline.run(configured(cohort, tmp_path, task=tasks, split=SplitConfig(method=Method.folds)))
    found = metrics_of(folder)["tasks"]
    assert found.keys() == {"response", "os"}
    assert all(len(task["model"]["folds"]) == 2 for task in found.values())
    rows = [np.load(folder / "private" / f"fold-{n}" / "scores" / "scores.npz")["os/model"] for n in (0, 1)]
    episodes = pl.read_parquet(cohort / "episodes.parquet")
    assert sum(map(len, rows)) == len(episodes)
    sets = found["response"]["model"]["sets"]
    assert sets["overall"]["rows"] == episodes["response"].count()
    assert sets["overall"]["metrics"]["coverage"]["estimate"] > 0.8
    assert sets["by_indication"]
    assert "sets" not in found["os"]["model"]
    assert all("Prediction sets: response" in (folder / name).read_text() for name in ("report.html", "log.txt"))
    assert all(np.isfinite(values).all() for values in rows)


def test_every_indication_is_left_out_in_turn(cohort: Path, tmp_path: Path, quick: None) -> None:
    split = SplitConfig(method=Method.indication)
    folder = pipeline.run(configured(cohort, tmp_path, split=split, model=ModelConfig(deep=False)))
    episodes = pl.read_parquet(cohort / "episodes.parquet")
    values = sorted(episodes["indication"].unique())
    found = metrics_of(folder)["tasks"]["response"]["model"]
    assert [fold["rows"] for fold in found["folds"]] == [(episodes["indication"] == v).sum() for v in values]
    log = (folder / "log.txt").read_text()
    assert f"held out in turn: {', '.join(values)}" in log
    assert "held-out episodes, 0 left out" in log


def test_survival_is_trained_on_landmarks_too(cohort: Path, tmp_path: Path, quick: None) -> None:
    tasks = TaskConfig(outcomes=[OutcomeConfig(name="os", kind=Kind.survival)])
    trained, scores = [], []
    for per_episode in (0, 1, 2):
        config = with_landmarks(configured(cohort, tmp_path, task=tasks), per_episode)  # one folder: another stage each
        scores.append(scores_of(config)["os/model"])
        found = re.findall(r"(\d+) training, ", (tmp_path / "tiny" / "log.txt").read_text())
        trained.append(int(found[-1]))
    own, once, twice = trained
    assert own < once <= 2 * own
    assert twice - own == 2 * (once - own)
    assert len(np.unique(np.stack(scores), axis=0)) == 3


def test_a_run_starts_from_one_that_was_pretrained_on_records(cohort: Path, tmp_path: Path, quick: None) -> None:
    folds = SplitConfig(method=Method.fold, fold=1)
    start = "DRUG//(.+)//START"
    pretraining = replace(
        configured(cohort, tmp_path, name="before", split=folds),
        cohort=CohortConfig(
            path=str(cohort),
            pretraining=PretrainingConfig(per_subject=2, outcomes={"tnt": f"{start}|MEDS_DEATH"}),
            lines=LinesConfig(start=start),
        ),
        task=TaskConfig(outcomes=[OutcomeConfig(name="tnt", kind=Kind.survival)]),
    )
    assert list(metrics_of(pipeline.run(pretraining))["tasks"]) == ["tnt"]
    training = TrainingConfig(epochs=1, batch_size=64, wide_strengths=[300.0], init_from="before")
    few = replace(folds, train_subjects=40)
    config = configured(cohort, tmp_path, name="after", split=few, training=training)
    folder = pipeline.run(config)
    assert metrics_of(folder)["tasks"]["response"]
    network, schema = load_fitted(folder / "private" / "fold-1" / "fit")
    source, known = load_fitted(tmp_path / "before" / "private" / "fold-1" / "fit")
    assert (schema.vocabulary, schema.summary_names) == (known.vocabulary, known.summary_names)
    assert network.earlier is not None
    for name, value in source.state_dict().items():
        torch.testing.assert_close(network.earlier.state_dict()[name], value)  # averaged with itself: the last bit
    assert network.wide.earlier is not None
    assert network.wide.earlier.abs().sum() > 0
    assert export_bundle(network, schema, tmp_path / "bundle") <= 1e-5
    seen = replace(config, name="seen", split=replace(few, fold=0))
    with pytest.raises(ValueError, match="expected a run that has not seen the subjects to tune on and held out, got"):
        pipeline.run(seen)
    with pytest.raises(ValueError, match=r"expected a finished run .nowhere. .* got none"):
        pipeline.run(replace(config, training=replace(training, init_from="nowhere")))


def scores_of(config: RunConfig) -> dict[str, Any]:
    with np.load(pipeline.run(config) / "private" / "split" / "scores" / "scores.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize("per_episode", [0, 2])
def test_held_out_outcomes_change_no_prediction(
    cohort: Path, tmp_path: Path, quick: None, calibrated: None, per_episode: int
) -> None:
    tasks = TaskConfig(outcomes=[OutcomeConfig(name="response"), OutcomeConfig(name="os", kind=Kind.survival)])
    other = tmp_path / "other"
    shutil.copytree(cohort, other)
    held_out = pl.col("split") == "held_out"
    pl.read_parquet(other / "episodes.parquet").with_columns(
        pl.when(held_out).then(~pl.col("response")).otherwise(pl.col("response")).alias("response"),
        pl.when(held_out).then(pl.col("os_time") * 3 + 5).otherwise(pl.col("os_time")).alias("os_time"),
        pl.when(held_out).then(~pl.col("os_event")).otherwise(pl.col("os_event")).alias("os_event"),
    ).write_parquet(other / "episodes.parquet")
    first, second = (
        scores_of(with_landmarks(configured(path, tmp_path / name, task=tasks), per_episode))
        for path, name in ((cohort, "a"), (other, "b"))
    )
    for name in ("response/model", "os/model"):
        np.testing.assert_array_equal(first[name], second[name])
        assert len(np.unique(first[name])) > 10
    fits = [tmp_path / name / "tiny" / "private" / "split" / "fit" / RESULT for name in ("a", "b")]
    found = [json.loads(path.read_text())["calibration"] for path in fits]
    assert found[0] == found[1]
    assert [entry["task"] for entry in found[0]] == ["response"]


def test_several_regimens_of_one_state_each_have_their_value(cohort: Path, tmp_path: Path, quick: None) -> None:
    screen = tmp_path / "screen"
    shutil.copytree(cohort, screen)
    episodes = pl.read_parquet(screen / "episodes.parquet").unique("subject_id", maintain_order=True)
    drugs = pl.read_parquet(screen / "treatments.parquet")["drug"][:3].to_list()
    each = pl.DataFrame({"treatment": [[drug] for drug in drugs], "shift": [0.0, 5.0, 10.0]})
    screened = (
        episodes.drop("treatment")
        .join(each, how="cross")
        .with_columns((pl.col("shift") + pl.col("sensitivity") / 100).alias("sensitivity"))
    )
    screened.select([*episodes.columns, "shift"]).write_parquet(screen / "episodes.parquet")
    tasks = TaskConfig(outcomes=[OutcomeConfig(name="sensitivity", kind=Kind.regression)])
    values = scores_of(configured(screen, tmp_path / "runs", task=tasks))["sensitivity/model"]
    truth = screened.filter(pl.col("split") == "held_out")["sensitivity"].to_numpy()
    assert np.corrcoef(values, truth)[0, 1] > 0.8
