"""Patients to arrays: what is kept of long records, how regimens become arrays, and that rows do not see each other."""

from dataclasses import replace

import numpy as np
import pytest

from ican_ml.cohort.cohort import Cohort
from ican_ml.encoding.csr import CSRBatch
from ican_ml.inputs.assemble import CohortStates, assemble
from ican_ml.inputs.encode import OmicsRows, PatientStates, collate, encode
from ican_ml.inputs.regimens import Regimen
from ican_ml.inputs.schema import FIRST_KNOWN, UNKNOWN, InputSchema
from ican_ml.records.store import RecordStore
from ican_ml.records.vocabulary import Events

FIRST = np.zeros(1, np.int64)
Arrays = dict[str, np.ndarray]


def _inputs(schema: InputSchema, *regimens: Regimen, events: Events | None = None, **omics: OmicsRows) -> Arrays:
    states = PatientStates(omics=omics, events=events, covariates={}, regimens=[regimens or ((),)])
    return collate(encode(schema, states), FIRST)


def _events(schema: InputSchema, gaps: list[float]) -> Events:
    assert schema.vocabulary is not None
    n = len(gaps)
    return Events(
        offsets=np.array([0, n]),
        code=np.arange(n, dtype=np.int32) % len(schema.vocabulary.codes),
        value=np.full(n, np.nan, np.float32),
        unit=np.zeros(n, np.int32),
        gap=np.array(gaps, np.float32),
        age=np.array([60], np.float32),
        codes=schema.vocabulary.codes,
    )


def _mutations(schema: InputSchema, assay: str, found: list[int]) -> OmicsRows:
    mutation = next(m for m in schema.modalities if m.name == "mutation")
    matrix = CSRBatch(
        np.array([0, len(found)]), np.array(found, np.int32), np.ones(len(found), np.float32), len(mutation.features)
    )
    return OmicsRows(matrix=matrix, panel=np.array([list(mutation.panels).index(assay) + 1]))


@pytest.mark.parametrize(("static", "dated"), [(3, 40), (30, 40), (30, 2), (0, 24), (5, 3)])
def test_a_long_record_keeps_static_events_and_the_latest_ones(
    sim_schema: InputSchema, static: int, dated: int
) -> None:
    gaps = [-1.0] * static + [float(day) for day in range(dated, 0, -1)]
    kept = _inputs(sim_schema, events=_events(sim_schema, gaps))["event_gap"][0].tolist()
    room = sim_schema.max_events
    assert len(kept) == min(len(gaps), room)
    assert kept.count(-1.0) == min(static, max(room // 2, room - dated))
    n_dated = len(kept) - kept.count(-1.0)
    assert kept[-n_dated:] == gaps[-n_dated:]


def test_equal_events_are_each_a_token(sim_schema: InputSchema) -> None:
    two = replace(_events(sim_schema, [5.0, 5.0]), code=np.zeros(2, np.int32))
    assert _inputs(sim_schema, events=two)["event_code"].shape == (1, 2)


def test_age_is_counted_at_each_event_and_zero_where_unknown(sim_schema: InputSchema) -> None:
    events = _events(sim_schema, [-1.0, 365.25])
    assert _inputs(sim_schema, events=events)["event_age"].tolist() == [[60.0, 59.0]]
    unknown = replace(events, age=np.array([np.nan], np.float32))
    assert _inputs(sim_schema, events=unknown)["event_age"].tolist() == [[0.0, 0.0]]


def test_drugs_have_identity_class_and_targets(sim_schema: InputSchema) -> None:
    drug = sim_schema.drugs[0]
    inputs = _inputs(sim_schema, (drug,), ("never seen",), (f"inhibitor:{sim_schema.genes[5]}",), ())
    targets = [sim_schema.gene_id[gene] for gene in sim_schema.targets[drug]]
    assert inputs["treatment_drug"][0, :, 0].tolist() == [sim_schema.drug_id[drug], UNKNOWN, 0, 0]
    assert inputs["treatment_class"][0, :, 0].tolist()[1:] == [UNKNOWN, 0, 0]
    assert inputs["treatment_gene"][0, 0, : len(targets)].tolist() == sorted(targets)
    assert inputs["treatment_gene"][0, 1:, 0].tolist() == [UNKNOWN, 5 + FIRST_KNOWN, 0]


def test_a_virtual_inhibitor_beside_a_drug_leaves_the_drug_there(sim_schema: InputSchema) -> None:
    inputs = _inputs(sim_schema, (f"inhibitor:{sim_schema.genes[5]}", "zz never seen"))
    assert inputs["treatment_drug"].tolist() == [[[UNKNOWN]]]
    assert inputs["treatment_gene"].tolist() == [[[UNKNOWN, 5 + FIRST_KNOWN]]]


def test_a_regimen_is_a_set(sim_schema: InputSchema) -> None:
    a, b = sim_schema.drugs[:2]
    there, back, doubled = (_inputs(sim_schema, regimen) for regimen in ((a, b), (b, a), (a, b, a)))
    for name, values in there.items():
        assert np.array_equal(values, back[name])
        assert np.array_equal(values, doubled[name])


def test_a_regimen_is_encoded_alike_whatever_else_is_asked(sim_schema: InputSchema) -> None:
    a, b, c = sim_schema.drugs[:3]
    alone, among = _inputs(sim_schema, (a,)), _inputs(sim_schema, (c, b), (a,), (f"inhibitor:{sim_schema.genes[0]}",))
    for name in ("drug", "class", "gene", "state", "state_known"):
        single, several = alone[f"treatment_{name}"][0, 0], among[f"treatment_{name}"][0, 1]
        assert np.array_equal(single, several[: len(single)]), name
        assert not several[len(single) :].any(), name


def test_a_target_that_the_assay_does_not_measure_is_unknown_not_zero(sim_schema: InputSchema) -> None:
    m, mutation = next((i, x) for i, x in enumerate(sim_schema.modalities) if x.name == "mutation")
    gene = mutation.genes[int(np.flatnonzero(~mutation.measured()[1])[0])]
    known = {}
    for assay in ("focused", "wide"):
        inputs = _inputs(sim_schema, (f"inhibitor:{gene}",), mutation=_mutations(sim_schema, assay, []))
        assert inputs["treatment_state"][0, 0, 0, m] == 0
        known[assay] = inputs["treatment_state_known"][0, 0, 0, m]
    assert known == {"focused": 0.0, "wide": 1.0}


def test_a_feature_that_the_assay_does_not_measure_adds_nothing_to_the_bag(sim_schema: InputSchema) -> None:
    import torch

    from ican_ml.model.omics import FeatureBag

    mutation = next(m for m in sim_schema.modalities if m.name == "mutation")
    bag = FeatureBag(mutation, 4)
    nothing = torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    focused, wide = (bag(*nothing, torch.tensor([assay]))[0].detach() for assay in (1, 2))
    centre = torch.tensor(mutation.mean * mutation.inverse_sd)
    for got, measured in zip((focused, wide), mutation.measured()[1:], strict=True):
        torch.testing.assert_close(got, -(centre * torch.tensor(measured)) @ bag.weight.detach())
    assert not torch.equal(focused, wide)


def test_a_row_is_the_same_alone_and_in_a_batch(
    sim_cohort: Cohort, sim_records: RecordStore, sim_schema: InputSchema, sim_states: CohortStates
) -> None:
    rows = np.array([11, 3, 3, 40])
    batch = collate(encode(sim_schema, sim_states.patients), rows)
    for i, row in enumerate(rows.tolist()):
        episode = int(np.flatnonzero(sim_states.patient == row)[0])
        one = assemble(sim_cohort, sim_records, sim_cohort.episodes[[episode]], ["indication", "line"])
        for name, values in collate(encode(sim_schema, one.patients, backend="reference"), FIRST).items():
            if name.endswith(("_indptr", "_indices", "_values")):
                continue
            padded = batch[name][i]
            where = tuple(slice(size) for size in values[0].shape)
            assert np.array_equal(padded[where], values[0]), name
            assert np.count_nonzero(padded) == np.count_nonzero(values[0]), name
