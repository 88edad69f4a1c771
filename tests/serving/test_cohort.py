"""A bundle on whole cohorts: the training cohort gives training's own bits, another is met by name."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ican_ml.cohort.cohort import Cohort, read_cohort
from ican_ml.inputs.answer import summarise
from ican_ml.inputs.assemble import CohortStates, assemble
from ican_ml.inputs.encode import collate, encode
from ican_ml.inputs.fit import InputConfig, fit_schema
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.records.meds import read_records
from ican_ml.records.store import RecordStore
from ican_ml.serving.align import align
from ican_ml.serving.cohort import CohortPredictions, encode_rows, predict_cohort, write_predictions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found(sim_bundle: Path, simulated: Path) -> CohortPredictions:
    return predict_cohort(sim_bundle, simulated)


def test_inputs_of_the_training_cohort_are_trainings_bit_for_bit(
    sim_schema: InputSchema, sim_cohort: Cohort, sim_records: RecordStore, sim_states: CohortStates
) -> None:
    encoded = encode(sim_schema, sim_states.patients)
    expected = collate(encoded, np.arange(encoded.n_rows))
    states, _, aligned = encode_rows(
        align(sim_schema, sim_cohort), sim_records, sim_cohort.episodes, ["indication", "line"]
    )
    got = collate(aligned, np.arange(aligned.n_rows))
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)
        assert got[name].dtype == values.dtype
    assert np.array_equal(states.slot, sim_states.slot)


def test_predictions_of_the_training_cohort_are_the_networks(
    found: CohortPredictions, sim_network: PatientTransformer, sim_schema: InputSchema, sim_states: CohortStates
) -> None:
    encoded = encode(sim_schema, sim_states.patients)
    batch = {name: torch.from_numpy(v) for name, v in collate(encoded, np.arange(encoded.n_rows)).items()}
    with torch.inference_mode():
        outputs = sim_network(batch)
    for task in sim_schema.tasks:
        expected = summarise(task, outputs[task.name].numpy())[sim_states.patient, sim_states.slot]
        np.testing.assert_allclose(found.prediction[task.name], expected, rtol=1e-5, atol=1e-5)


def test_nothing_of_the_training_cohort_is_new_to_the_model(found: CohortPredictions) -> None:
    shift = found.shift
    assert shift["records"]["known"] > 0.95, "rare codes have no identity"
    assert shift["covariates"]["indication"]["unseen"]["names"] == 0
    assert all(m["features_absent"] == m["features_unknown"] == 0 for m in shift["modalities"].values())
    assert all(m["moved_by_1_sd"] == 0 for m in shift["modalities"].values())
    wide = shift["modalities"]["mutation"]["assays"]["wide"]
    assert wide == {"taken_for": "wide", "filled": 0, "left_aside": 0}


def test_another_cohort_is_predicted_and_noted(sim_bundle: Path, elsewhere: Path, tmp_path: Path) -> None:
    found = predict_cohort(sim_bundle, elsewhere)
    path = tmp_path / "predictions.parquet"
    write_predictions(found, path)
    frame = pl.read_parquet(path)
    episodes = pl.read_parquet(elsewhere / "episodes.parquet")
    for name in ("subject_id", "treatment", "indication"):
        assert frame[name].equals(episodes[name]), name
    assert {"response", "os", "sensitivity", "prediction_time"} < set(frame.columns)
    assert frame["response"].is_between(0, 1).all()
    assert (frame.select("response", "os", "sensitivity").to_numpy().std(axis=0) > 0).all()
    new = episodes["treatment"].list.eval(pl.element().filter(pl.element().str.starts_with("NEW-")))
    assert frame["note_unknown_drugs"].to_list() == new.to_list()
    assert frame["note_missing_modalities"].list.contains("cnv").all()
    assert frame["note_out_of_range"].is_between(0, 0.2).all()
    assert frame["note_codes_unknown"].drop_nulls().is_between(0, 1).all()
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.parquet"]

    shift = found.shift
    assert shift["modalities"]["cnv"] == {"used": False, "why": "the cohort has none"}
    assert shift["covariates"]["indication"]["unseen"]["common"][0]["name"] == "UVEAL"
    drugs = {drug["name"]: drug for drug in shift["drugs"]["common"]}
    assert {name[:4] for name in drugs} == {"NEW-"}
    assert all(drug["targets"] == drug["targets_known"] > 0 for drug in drugs.values())
    assert shift["drugs"]["episodes"] == int((new.list.len() > 0).sum())


def test_a_few_subjects_at_a_time_change_nothing(
    found: CohortPredictions, sim_bundle: Path, simulated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ican_ml.serving.cohort._EPISODES_AT_ONCE", 50)
    again = predict_cohort(sim_bundle, simulated)
    for name, values in found.prediction.items():
        np.testing.assert_allclose(again.prediction[name], values, rtol=1e-5, atol=1e-5)
    assert again.shift["records"] == found.shift["records"]
    assert again.notes["missing_modalities"] == found.notes["missing_modalities"]


def test_covariates_of_other_types_never_stop_it(sim_bundle: Path, elsewhere: Path, tmp_path: Path) -> None:
    changes: dict[str, list[pl.Expr]] = {
        "texts": [pl.when(pl.col("line") == 1).then(pl.lit("first")).otherwise(pl.lit("2")).alias("line")],
        "nested": [pl.lit([1]).alias("line")],
        "nothing": [pl.lit(None).alias("line"), pl.lit(None, pl.String).alias("indication")],
    }
    used = {}
    for name, exprs in changes.items():
        cohort = tmp_path / name
        shutil.copytree(elsewhere, cohort)
        shutil.rmtree(cohort / "omics")
        shutil.rmtree(cohort / "records")
        pl.read_parquet(cohort / "episodes.parquet").with_columns(exprs).write_parquet(cohort / "episodes.parquet")
        other = predict_cohort(sim_bundle, cohort)
        write_predictions(other, tmp_path / "out.parquet")
        assert all(np.isfinite(values).all() for values in other.prediction.values())
        used[name] = {column: shift["used"] for column, shift in other.shift["covariates"].items()}
    assert used["nested"] == {"indication": True, "line": False}
    assert used["texts"] == used["nothing"] == {"indication": True, "line": True}
    pl.read_parquet(tmp_path / "texts" / "episodes.parquet").drop("line", "indication").write_parquet(
        tmp_path / "texts" / "episodes.parquet"
    )
    write_predictions(predict_cohort(sim_bundle, tmp_path / "texts"), tmp_path / "out.parquet")
    assert pl.read_parquet(tmp_path / "out.parquet")["indication"].null_count() > 0


_FRESH = """
import sys
from ican_ml.cli import main

bundle, cohort, folder = sys.argv[1:]
main(["predict", bundle, cohort, "--out", folder + "/predictions.parquet"])
main(["evaluate", bundle, cohort, "--out", folder])
heavy = {"torch", "lightning", "hydra", "omegaconf", "wandb", "sklearn", "onnx"} & set(sys.modules)
assert not heavy, heavy
"""


def test_a_whole_cohort_needs_no_torch(sim_bundle: Path, elsewhere: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FRESH, str(sim_bundle), str(elsewhere), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "evaluation.html",
        "evaluation.json",
        "predictions.parquet",
    }
    told = done.stdout + done.stderr + "".join((tmp_path / f"evaluation.{e}").read_text() for e in ("json", "html"))
    subjects = pl.read_parquet(elsewhere / "episodes.parquet")["subject_id"].unique()
    assert not [subject for subject in subjects if str(subject) in told]
    assert str(elsewhere.parent) not in told


@pytest.mark.parametrize("name", ["tcga-survival", "gdsc", "loris"])
def test_inputs_of_real_cohorts_are_trainings_bit_for_bit(name: str, cohorts: Path) -> None:
    cohort = read_cohort(cohorts / name)
    store = read_records(cohort.path) if cohort.has_records else None
    episodes = cohort.episodes[:600]
    covariates = [column for column in ("indication",) if column in episodes.columns]
    schema = fit_schema(cohort, store, episodes, InputConfig(covariates=covariates), outcomes=[])
    expected = encode(schema, assemble(cohort, store, episodes, covariates).patients)
    _, _, got = encode_rows(align(schema, cohort), store, episodes, covariates)
    rows = np.arange(got.n_rows)
    found = collate(got, rows)
    for key, values in collate(expected, rows).items():
        np.testing.assert_array_equal(found[key], values, err_msg=key)


@pytest.mark.parametrize("name", ["tcga-survival", "loris"])
def test_real_cohorts_that_the_model_has_never_seen_are_predicted(name: str, sim_bundle: Path, cohorts: Path) -> None:
    found = predict_cohort(sim_bundle, cohorts / name)
    assert all(np.isfinite(values).all() for values in found.prediction.values())
    assert not found.shift["modalities"]["expression"]["used"]
