"""Predictions for one patient: what they depend on, what they do not, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ican_ml.bundle.export import export_bundle
from ican_ml.cohort.cohort import Cohort
from ican_ml.inputs.answer import summarise
from ican_ml.inputs.assemble import CohortStates, as_dictionary
from ican_ml.inputs.encode import collate, encode
from ican_ml.inputs.patient import PatientError
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
from ican_ml.records.store import RecordStore
from ican_ml.serving.predictor import Predictor, Ranked

Regimens = list[tuple[str, ...]]


@pytest.fixture(scope="module")
def predictor(sim_bundle: Path) -> Predictor:
    return Predictor(sim_bundle)


@pytest.fixture(scope="module")
def patient(sim_cohort: Cohort, sim_records: RecordStore, sim_states: CohortStates) -> dict[str, Any]:
    return as_dictionary(sim_cohort, sim_records, sim_states, _full_row(sim_states))


def _full_row(states: CohortStates) -> int:
    """A patient with every modality and a record."""
    assert states.patients.events is not None
    measured = np.stack([rows.panel > 0 for rows in states.patients.omics.values()]).all(axis=0)
    return int(np.flatnonzero(measured & (np.diff(states.patients.events.offsets) > 30))[0])


def _ask(predictor: Predictor, patient: dict[str, Any], regimens: Regimens) -> dict[tuple[str, ...], Ranked]:
    return {ranked.regimen: ranked for ranked in predictor.predict(patient, regimens).ranked}


def _values(ranked: Ranked) -> list[float]:
    return list(ranked.prediction.values())


@pytest.fixture(scope="module")
def regimens(sim_schema: InputSchema) -> Regimens:
    drugs = sim_schema.drugs
    several = max(drugs, key=lambda drug: len(sim_schema.targets.get(drug, ())))
    inhibitor = f"inhibitor:{sim_schema.targets[drugs[0]][0]}"
    return [
        (drugs[0],),
        (several,),
        (drugs[0], drugs[3]),
        (inhibitor,),
        ("zz never seen",),
        (inhibitor, "zz never seen"),
    ]


def test_the_answer_is_the_networks(
    predictor: Predictor,
    patient: dict[str, Any],
    regimens: Regimens,
    sim_network: PatientTransformer,
    sim_schema: InputSchema,
    sim_states: CohortStates,
) -> None:
    row = _full_row(sim_states)
    asked = predictor.predict(patient, sim_states.patients.regimens[row]).ranked
    batch = collate(encode(sim_schema, sim_states.patients), np.array([row]))
    with torch.inference_mode():
        outputs = sim_network({name: torch.from_numpy(values) for name, values in batch.items()})
    for slot, regimen in enumerate(sim_states.patients.regimens[row]):
        got = next(r for r in asked if r.regimen == tuple(sorted(regimen)))
        for task in sim_schema.tasks:
            expected = summarise(task, outputs[task.name].numpy())[0, slot]
            assert got.prediction[task.name] == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_regimens_do_not_see_each_other(predictor: Predictor, patient: dict[str, Any], regimens: Regimens) -> None:
    together = _ask(predictor, patient, regimens)
    backwards = _ask(predictor, patient, regimens[::-1])
    for regimen in regimens:
        alone = _ask(predictor, patient, [regimen])[regimen]
        np.testing.assert_allclose(_values(together[regimen]), _values(alone), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(_values(together[regimen]), _values(backwards[regimen]), rtol=1e-6, atol=1e-6)


def test_regimens_and_drugs_get_different_answers(
    predictor: Predictor, patient: dict[str, Any], regimens: Regimens
) -> None:
    answers = [_values(ranked)[0] for ranked in _ask(predictor, patient, regimens).values()]
    assert len({round(answer, 6) for answer in answers}) == len(regimens)


def test_the_most_promising_comes_first(predictor: Predictor, patient: dict[str, Any], regimens: Regimens) -> None:
    answer = predictor.predict(patient, regimens)
    assert answer.task == "response"
    response = [ranked.prediction["response"] for ranked in answer.ranked]
    assert response == sorted(response, reverse=True)
    assert all(0 < value < 1 for value in response)
    assert all(0 < ranked.prediction["os"] < predictor.schema.tasks[1].edges[-1] for ranked in answer.ranked)


def test_order_and_repeats_within_a_regimen_are_free(predictor: Predictor, patient: dict[str, Any]) -> None:
    a, b = predictor.schema.drugs[:2]
    assert _ask(predictor, patient, [(a, b)]) == _ask(predictor, patient, [(b, a, b)])


def test_every_part_of_the_patient_may_be_missing(
    predictor: Predictor, patient: dict[str, Any], regimens: Regimens
) -> None:
    full = [_values(r) for r in _ask(predictor, patient, regimens).values()]
    partial: list[dict[str, Any]] = [
        {},
        *({k: v for k, v in patient.items() if k != part} for part in ("events", "birth_time")),
    ]
    for name in patient["omics"]:
        partial.append(
            {**patient, **{part: {k: v for k, v in patient[part].items() if k != name} for part in ("omics", "assays")}}
        )
    for document in partial:
        answers = [_values(r) for r in _ask(predictor, document, regimens).values()]
        assert np.isfinite(answers).all()
        assert not np.allclose(sorted(answers), sorted(full), rtol=1e-6, atol=1e-6)


def test_a_drug_that_training_did_not_see_is_named(predictor: Predictor, patient: dict[str, Any]) -> None:
    known, inhibitor = predictor.schema.drugs[0], f"inhibitor:{predictor.schema.genes[0]}"
    answers = _ask(predictor, patient, [(known,), ("new", known), (inhibitor,)])
    assert {regimen: ranked.unknown_drugs for regimen, ranked in answers.items()} == {
        (known,): (),
        (known, "new"): ("new",),
        (inhibitor,): (),
    }


def test_an_event_after_the_prediction_changes_nothing_and_is_counted(
    predictor: Predictor, patient: dict[str, Any], regimens: Regimens
) -> None:
    before = predictor.predict(patient, regimens)
    later = {"code": "LAB//HGB", "time": "2199-01-01", "value": 60, "unit": "g/L"}
    after = predictor.predict({**patient, "events": [*patient["events"], later]}, regimens)
    assert after.ranked == before.ranked
    assert (before.notes.events_after_prediction, after.notes.events_after_prediction) == (0, 1)


BAD: list[tuple[Any, str]] = [
    ([], "treatments: expected at least one regimen"),
    ([()], r"treatments\[0\]: expected at least one drug"),
    ([("A",), ("",)], r"treatments\[1\]: expected a list of drug names"),
    (["osimertinib"], r"treatments\[0\]: expected a list of drug names, got 'osimertinib'"),
    ([("A", 3)], r"treatments\[0\]"),
    ([("A", "inhibitor:NOTAGENE")], r"treatments\[0\]: expected a gene that the model knows, got 'inhibitor:NOTAGENE'"),
]


@pytest.mark.parametrize(("regimens", "message"), BAD)
def test_a_regimen_that_cannot_be_used_is_refused(predictor: Predictor, regimens: Any, message: str) -> None:
    with pytest.raises(PatientError, match=f"^{message}"):
        predictor.predict({}, regimens)


@pytest.mark.parametrize("value", [float("nan"), "12", -1])
def test_a_patient_that_cannot_be_used_is_refused(predictor: Predictor, value: object) -> None:
    with pytest.raises(PatientError, match=r"^omics\.expression\.ERBB2: expected a"):
        predictor.predict({"omics": {"expression": {"ERBB2": value}}}, [("A",)])


def test_members_say_what_they_do_not_know(
    sim_schema: InputSchema, patient: dict[str, Any], regimens: Regimens, predictor: Predictor, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    config = ModelConfig(width=8, heads=2, omics_layers=0, trees=2, trees_by="indication", members=2)
    network = PatientTransformer(config, sim_schema)
    with torch.no_grad():
        for member in network.members:
            for head in member.heads.values():
                head[-1].weight.normal_()
        assert network.trees is not None
        network.trees.feature.random_(network.trees.n_values)
        network.trees.threshold.normal_()
        network.trees.leaf.normal_()
    export_bundle(network, sim_schema, tmp_path / "bundle")
    several = Predictor(tmp_path / "bundle")
    asked = several.run(several.inputs(patient, regimens)[0])
    for ranked in several.predict(patient, regimens).ranked:
        r = regimens.index(ranked.regimen)
        probability = 1 / (1 + np.exp(-asked["response_members"][0, r].astype(float)))
        doubt = ranked.uncertainty["response"]
        mean = probability.mean()
        assert doubt["epistemic"] > 1e-4
        assert doubt["epistemic"] + doubt["aleatoric"] == pytest.approx(
            -(mean * np.log2(mean) + (1 - mean) * np.log2(1 - mean))
        )
        value = asked["sensitivity_members"][0, r].astype(float)
        expected = {"aleatoric": np.exp(value[:, 1]).mean() ** 0.5, "epistemic": value[:, 0].std()}
        assert ranked.uncertainty["sensitivity"] == pytest.approx(expected)
        assert ranked.uncertainty["os"]["epistemic"] > 0
        assert 0 < ranked.uncertainty["os"]["aleatoric"] <= sim_schema.tasks[1].edges[-1] / 2
    assert not _ask(predictor, patient, regimens)[regimens[0]].uncertainty, "one member has nobody to disagree with"
