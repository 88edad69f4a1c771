"""The exported graph: what it may hold, and that it answers as torch does, whatever the sizes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from ican_ml.bundle import export
from ican_ml.bundle.export import export_bundle, parity
from ican_ml.bundle.golden import invented_patients
from ican_ml.bundle.read import CALIBRATION, MODEL, BundleError, open_bundle
from ican_ml.evaluation.applicability import EMBEDDING
from ican_ml.evaluation.conformal import Calibration
from ican_ml.inputs.assemble import CohortStates
from ican_ml.inputs.encode import PatientStates, collate, encode
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
from ican_ml.serving.predictor import Predictor

TINY = ModelConfig(width=8, heads=2, bottleneck_tokens=2, record_layers=0)


@pytest.fixture(scope="module")
def model(sim_bundle: Path) -> bytes:
    return (sim_bundle / MODEL).read_bytes()


def test_the_graph_is_plain_opset_20(model: bytes) -> None:
    proto = onnx.load_from_string(model)
    onnx.checker.check_model(proto)
    assert {(entry.domain, entry.version) for entry in proto.opset_import if not entry.domain} == {("", 20)}
    kinds = {node.op_type for part in (proto.graph, *proto.functions) for node in part.node}
    assert not {kind for kind in kinds if kind in ("Loop", "Scan", "If") or "Sequence" in kind}
    assert {output.name for output in proto.graph.output} == {"response", "os", "sensitivity", EMBEDDING}
    assert not any(tensor.external_data for tensor in proto.graph.initializer)


def test_nothing_in_the_graph_tells_where_it_was_made(model: bytes) -> None:
    # Weights are bytes too, and may spell anything; names and texts are what is left without them.
    proto = onnx.load_from_string(model)
    for tensor in proto.graph.initializer:
        tensor.raw_data = b""
    text = proto.SerializeToString()
    assert not re.search(rb"\.py\b|site-packages|/home|/root|/tmp|/usr|/work|torch/|ican_ml/|File \"", text)
    assert str(Path(export.__file__).parent).encode() not in model


@pytest.mark.parametrize("size", [1, 7, 23])
def test_onnx_answers_as_torch_for_any_batch(
    model: bytes, sim_network: PatientTransformer, sim_schema: InputSchema, sim_states: CohortStates, size: int
) -> None:
    encoded = encode(sim_schema, sim_states.patients)
    assert parity(model, sim_network, [collate(encoded, np.arange(3, 3 + size))]) < 1e-5


def test_onnx_answers_as_torch_beyond_the_sizes_it_was_traced_with(
    model: bytes, sim_bundle: Path, sim_network: PatientTransformer, sim_schema: InputSchema, sim_states: CohortStates
) -> None:
    drugs = sim_schema.drugs
    many = [(drug,) for drug in drugs] + [drugs[:5], drugs, ("x", f"inhibitor:{sim_schema.genes[0]}", *drugs)]
    many += [(drugs[0], drug) for drug in drugs[1:]]
    states = replace(sim_states.patients, regimens=[many] * len(sim_states.subject_id))
    wide = encode(replace(sim_schema, max_events=500), states)
    inputs = collate(wide, np.arange(12))
    traced = open_bundle(sim_bundle).golden_inputs
    for name in ("event_code", "treatment_drug", "treatment_gene"):
        assert all(np.array(inputs[name].shape[1:]) > np.array(traced[name].shape[1:])), name
    assert parity(model, sim_network, [inputs]) < 1e-5


def test_outputs_vary_and_have_the_shape_of_their_kind(
    sim_network: PatientTransformer, sim_schema: InputSchema, sim_states: CohortStates
) -> None:
    inputs = collate(encode(sim_schema, sim_states.patients), np.arange(20))
    with torch.inference_mode():
        outputs = sim_network({name: torch.from_numpy(values) for name, values in inputs.items()})
    regimens = inputs["treatment_drug"].shape[1]
    bins = len(sim_schema.tasks[1].edges)
    assert [tuple(v.shape) for v in outputs.values()] == [(20, regimens), (20, regimens, bins), (20, regimens, 2)]
    assert all(float(values[:, 0].std(dim=0).min()) > 1e-4 for values in outputs.values())


def _without_records(schema: InputSchema) -> InputSchema:
    n = sum(len(c.columns) for c in schema.covariates)
    return replace(
        schema,
        modalities=schema.modalities[1:2],
        vocabulary=None,
        aggregates=None,
        summary_mean=schema.summary_mean[-n:],
        summary_inverse_sd=schema.summary_inverse_sd[-n:],
        drugs=schema.drugs[:1],
        tasks=schema.tasks[2:],
    )


def _without_omics(schema: InputSchema) -> InputSchema:
    return replace(schema, modalities=(), genes=(), targets={}, drugs=(), classes=(), tasks=schema.tasks[1:2])


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("part", [_without_records, _without_omics])
def test_a_schema_without_a_part_exports_and_predicts(sim_schema: InputSchema, tmp_path: Path, part: object) -> None:
    assert callable(part)
    schema: InputSchema = part(sim_schema)
    assert export_bundle(PatientTransformer(TINY, schema), schema, tmp_path / "bundle") < 1e-5
    predictor = Predictor(tmp_path / "bundle")
    events = [{"code": "SEX//F"}, {"code": "never seen", "time": "2019-01-01"}]
    omics = {"expression": dict.fromkeys(sim_schema.modalities[1].features[:9], 3.0)} if schema.modalities else {}
    answer = predictor.predict({"events": events, "omics": omics}, [("a",), ("b", "c", "d")])
    assert len(answer.ranked) == 2


def test_calibration_is_exported(sim_schema: InputSchema, sim_states: CohortStates, tmp_path: Path) -> None:
    schema = replace(sim_schema, modalities=sim_schema.modalities[:1], tasks=sim_schema.tasks[:2])
    torch.manual_seed(1)
    network = PatientTransformer(TINY, schema).eval()
    with torch.no_grad():
        network.wide.summary.weight.normal_(std=0.3)
    inputs = collate(encode(schema, sim_states.patients), np.arange(9))
    with torch.inference_mode():
        before = network({name: torch.from_numpy(values) for name, values in inputs.items()})
    network.set_calibration("response", 0.5, -0.25)
    found = Calibration(
        task="response", slope=0.5, intercept=-0.25, coverage=0.9, quantile=0.75, n_episodes=200, n_subjects=150
    )
    assert export_bundle(network, schema, tmp_path / "calibrated", calibration={"response": found}) < 1e-5

    calibrated = Predictor(tmp_path / "calibrated")
    assert parity((tmp_path / "calibrated" / MODEL).read_bytes(), network, [inputs]) < 1e-5
    after = calibrated.run(inputs)
    np.testing.assert_allclose(after["response"], 0.5 * before["response"] - 0.25, atol=1e-6)
    np.testing.assert_allclose(after["os"], before["os"], atol=1e-6)
    assert calibrated.calibration == {"response": found}
    told = json.loads((tmp_path / "calibrated" / CALIBRATION).read_text())
    assert told == {"format": "ican-calibration/1", "tasks": [found.to_dict()]}
    drugs = [(drug,) for drug in schema.drugs]
    answer = calibrated.predict({}, drugs)
    assert answer.coverage == {"response": 0.9}
    assert all(ranked.sets == {"response": found.answer_set(ranked.prediction["response"])} for ranked in answer.ranked)

    content = (tmp_path / "calibrated" / CALIBRATION).read_bytes().replace(b"0.75", b"0.95")
    (tmp_path / "calibrated" / CALIBRATION).write_bytes(content)
    with pytest.raises(BundleError, match=r"calibration\.json is not the file that was exported"):
        open_bundle(tmp_path / "calibrated")


def test_a_network_that_onnx_does_not_reproduce_is_not_written(
    sim_network: PatientTransformer, sim_schema: InputSchema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_trace", lambda network, inputs: b"")
    monkeypatch.setattr(export, "parity", lambda model, network, batches: 2e-5)
    with pytest.raises(BundleError, match="expected ONNX and torch to agree within 1e-05, got 2e-05"):
        export_bundle(sim_network, sim_schema, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_invented_patients_fill_every_input(sim_schema: InputSchema) -> None:
    patients: PatientStates = invented_patients(sim_schema, 7, seed=20)
    inputs = collate(encode(sim_schema, patients), np.arange(7))
    assert all(values.any() for values in inputs.values())
    again = collate(encode(sim_schema, invented_patients(sim_schema, 7, seed=20)), np.arange(7))
    assert all(np.array_equal(values, again[name]) for name, values in inputs.items())
