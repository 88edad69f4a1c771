"""A bundle evaluated on another cohort: the numbers are the training code's, small groups and subjects stay unseen."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ican_ml.cohort.cohort import read_cohort
from ican_ml.evaluation.report import render_report
from ican_ml.inputs.answer import risk, summarise
from ican_ml.inputs.assemble import assemble
from ican_ml.inputs.encode import encode
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.records.meds import read_records
from ican_ml.results import MODEL, Scores, evaluate_scores
from ican_ml.serving.cohort import CohortPredictions, predict_cohort
from ican_ml.training.loop import predict
from ican_ml.training.outcomes import read_outcomes
from ican_ml.transfer import Evaluation, evaluate_predictions


@pytest.fixture(scope="module")
def found(sim_bundle: Path, elsewhere: Path) -> CohortPredictions:
    return predict_cohort(sim_bundle, elsewhere)


@pytest.fixture(scope="module")
def evaluation(found: CohortPredictions) -> Evaluation:
    return evaluate_predictions(found, replicates=20, seed=7)


def assert_close(got: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key in expected:
            assert_close(got[key], expected[key])
    elif expected is None:
        assert got is None
    else:
        assert got == pytest.approx(expected, abs=1e-6, rel=1e-6)


def test_metrics_are_those_of_the_training_code(
    evaluation: Evaluation, elsewhere: Path, sim_schema: InputSchema, sim_network: PatientTransformer
) -> None:
    cohort, store = read_cohort(elsewhere), read_records(elsewhere)
    schema = replace(
        sim_schema,
        targets={**cohort.targets, **sim_schema.targets},
        class_of={**cohort.classes, **sim_schema.class_of},
    )
    states = assemble(cohort, store, cohort.episodes, ["indication", "line"])
    encoded = encode(schema, states.patients)
    outputs = predict(sim_network, encoded, np.arange(encoded.n_rows))
    outcomes = read_outcomes(cohort.episodes, {task.name: task.kind for task in schema.tasks})
    for task in schema.tasks:
        output = outputs[task.name][states.patient, states.slot]
        score = risk(output) if task.kind == "survival" else summarise(task, output)
        scores = Scores(name="x", rows=np.arange(len(score)), arrays={f"{task.name}/{MODEL}": score}, curve=())
        expected = (
            evaluate_scores(task.name, outcomes[task.name], cohort.episodes, [scores], replicates=20, seed=7)
            .pooled[MODEL]
            .to_dict()
        )
        got = evaluation.document["tasks"][task.name]
        assert_close(got["overall"], expected["overall"])
        assert_close(got["by"]["indication"], expected["by_indication"])


def test_groups_calibration_and_shift_are_there(evaluation: Evaluation) -> None:
    document = json.loads(json.dumps(evaluation.document))
    assert document["format"] == "ican-evaluation/1"
    response, os = document["tasks"]["response"], document["tasks"]["os"]
    assert "UVEAL" in response["by"]["indication"]
    assert response["by"]["site"].keys() == {"north", "south", "east", "west", "central"}
    assert any(drug.startswith("NEW-") for drug in response["by"]["drug"])
    assert all(
        group["subjects"] >= 10
        for task in document["tasks"].values()
        for groups in task["by"].values()
        for group in groups.values()
    )
    assert response["calibration"].keys() == {"slope", "intercept", "reliability"}
    assert len(response["calibration"]["reliability"]) > 3
    assert os["calibration"]["horizon_days"] > 0
    assert 0 <= document["shift"]["survival"]["os"]["beyond"] < 1
    assert document["shift"]["drugs"]["names"] >= 1
    for text in (evaluation.table, render_report(evaluation.report)):
        assert "UVEAL" in text
        assert "cnv: not used" in text
        assert "drugs: unseen" in text


def test_tasks_without_outcome_are_named(found: CohortPredictions) -> None:
    fewer = replace(found.cohort, episodes=found.cohort.episodes.drop("os_time", "sensitivity"))
    document = evaluate_predictions(replace(found, cohort=fewer), replicates=2, seed=0).document
    assert document["tasks"].keys() == {"response"}
    assert document["without_outcome"] == ["os", "sensitivity"]


def test_a_cohort_of_few_labels_is_refused(found: CohortPredictions) -> None:
    few = found.cohort.episodes.with_columns(
        pl.when(pl.int_range(pl.len()) < 5).then("response").alias("response")
    ).drop("os_time", "sensitivity")
    with pytest.raises(ValueError, match=r"outcome of the model .* in at least 10 subjects, got fewer"):
        evaluate_predictions(replace(found, cohort=replace(found.cohort, episodes=few)), replicates=2, seed=0)
    none = found.cohort.episodes.drop("os_time", "sensitivity", "response")
    with pytest.raises(ValueError, match="got no such column"):
        evaluate_predictions(replace(found, cohort=replace(found.cohort, episodes=none)), replicates=2, seed=0)
