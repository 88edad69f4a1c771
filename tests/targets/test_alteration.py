"""In-silico alteration: what changes in the values, and that nothing else changes."""

import numpy as np
import pytest

from ican_ml.encoding.csr import CSRBatch
from ican_ml.inputs.assemble import CohortStates
from ican_ml.inputs.encode import EncodedPatients, OmicsRows
from ican_ml.inputs.schema import InputSchema, ModalitySchema
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.targets.alteration import CHANGES, Change, alter, altered_rows
from ican_ml.targets.asking import omics_of, own_regimen

VALUES = np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]], np.float32)


def modality(kind: str, *, explicit: bool = False) -> ModalitySchema:
    ones = np.ones(3, np.float32)
    return ModalitySchema(
        name="any",
        kind=kind,
        explicit=explicit,
        features=("a", "b", "c"),
        genes=("A", "B", "A"),
        mean=ones,
        inverse_sd=2 * ones,
        rank_scale=ones,
        panels={"all": None, "first": (0, 1)},
        max_tokens=3,
    )


def after(schema: ModalitySchema, gene: str, change: Change) -> np.ndarray:
    rows = OmicsRows(matrix=CSRBatch.from_dense(VALUES, keep_zeros=False), panel=np.array([1, 2, 0]))
    found = altered_rows(schema, rows, gene, change)
    assert (found.panel == rows.panel).all()
    dense = np.zeros_like(VALUES)
    dense[found.matrix.row_ids(), found.matrix.indices] = found.matrix.values
    return dense


@pytest.mark.parametrize("kind", ["binary", "count", "continuous"])
def test_silenced_leaves_nothing_of_a_gene(kind: str) -> None:
    assert not after(modality(kind), "A", "silenced")[:, [0, 2]].any()
    np.testing.assert_array_equal(after(modality(kind), "B", "silenced"), VALUES)
    np.testing.assert_array_equal(after(modality(kind), "elsewhere", "lost"), VALUES)


def test_lost_takes_the_copies_where_they_are_measured() -> None:
    found = after(modality("continuous"), "A", "lost")
    np.testing.assert_array_equal(found, [[-2, 0, -2], [-2, 0, 0], [0, 0, 0]])
    assert not after(modality("count"), "A", "lost")[:, [0, 2]].any()


def test_restored_takes_alterations_and_leaves_expression() -> None:
    assert not after(modality("binary"), "A", "restored")[:, [0, 2]].any()
    assert not after(modality("continuous"), "A", "restored")[:, [0, 2]].any()
    np.testing.assert_array_equal(after(modality("count"), "A", "restored"), VALUES)


def test_where_every_value_is_stored_it_falls() -> None:
    rows = OmicsRows(matrix=CSRBatch.from_dense(VALUES + 1, keep_zeros=True), panel=np.array([1, 1, 1]))
    found = altered_rows(modality("continuous", explicit=True), rows, "A", "silenced")
    dense = found.matrix.values.reshape(3, 3)
    np.testing.assert_array_equal(dense[:, [0, 2]], 0)  # the mean, 1, less two deviations of a half
    np.testing.assert_array_equal(dense[:, 1], 1)


def test_who_does_not_carry_a_gene_changes_by_exactly_nothing(
    sim_network: PatientTransformer, sim_schema: InputSchema, sim_encoded: EncodedPatients, sim_states: CohortStates
) -> None:
    patient, slot = np.arange(40), np.zeros(40, np.int64)
    omics = omics_of(sim_encoded, patient)
    regimens = [sim_states.patients.regimens[p][0] for p in patient]
    genes = ["KRAS", "EGFR", *sim_schema.modalities[0].genes[:6]]
    found = alter(sim_network, sim_schema, own_regimen(sim_encoded, patient, slot), omics, regimens, genes)
    assert set(found) == set(CHANGES)
    carried = np.zeros((40, len(genes)), bool)
    for m in sim_schema.modalities:
        rows = omics[m.name].matrix
        for g, gene in enumerate(genes):
            features = np.flatnonzero(np.array(m.genes) == gene)
            carried[np.unique(rows.row_ids()[np.isin(rows.indices, features)]), g] = True
    assert carried.any()
    assert not carried.all()
    assert not found["silenced"][~carried].any()
    assert np.abs(found["silenced"][carried]).max() > 1e-5
    assert not np.array_equal(found["lost"], found["silenced"])
