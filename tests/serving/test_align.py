"""Another cohort's features, assays and drugs on a model's: by name, whatever their order, and never silently wrong."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ican_ml.cohort.cohort import Cohort
from ican_ml.cohort.omics import Modality
from ican_ml.encoding.csr import CSRBatch
from ican_ml.inputs.encode import collate
from ican_ml.inputs.schema import InputSchema, ModalitySchema
from ican_ml.model.omics import FeatureBag, FeatureScale
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.serving.align import align, choose_panels, dense
from ican_ml.serving.cohort import encode_rows

N = 60


def columns(modality: Modality, chosen: Any, **changes: Any) -> Modality:
    """The modality with the columns ``chosen`` alone, in that order."""
    values, stored = dense(modality.matrix)
    matrix = CSRBatch.from_dense(np.where(stored, values, np.nan)[:, chosen], keep_zeros=True)
    settings = {
        "matrix": matrix,
        "features": tuple(modality.features[i] for i in chosen),
        "genes": tuple(modality.genes[i] for i in chosen),
        "panels": {name: mask[chosen] for name, mask in modality.panels.items()},
    }
    return replace(modality, **{**settings, **changes})


def encoded(schema: InputSchema, cohort: Cohort, **modalities: Modality) -> dict[str, Any]:
    """Inputs of the first episodes, with some modalities replaced."""
    other = replace(cohort, modalities={**cohort.modalities, **modalities})
    _, _, patients = encode_rows(align(schema, other), None, cohort.episodes[:N], ["indication"])
    return collate(patients, np.arange(patients.n_rows))


def model_of(schema: InputSchema, name: str) -> ModalitySchema:
    return next(m for m in schema.modalities if m.name == name)


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)


@pytest.mark.parametrize("name", ["mutation", "expression", "cnv"])
def test_the_order_of_columns_and_unknown_ones_change_nothing(
    name: str, sim_schema: InputSchema, sim_cohort: Cohort
) -> None:
    modality = sim_cohort.modalities[name]
    order = np.random.default_rng(0).permutation(len(modality.features))
    shuffled = columns(modality, order)
    assert_same(encoded(sim_schema, sim_cohort, **{name: shuffled}), encoded(sim_schema, sim_cohort))

    more = columns(modality, [*order, 0, 1])
    renamed = replace(more, features=(*more.features[:-2], "OTHER1", "OTHER2"))
    assert_same(encoded(sim_schema, sim_cohort, **{name: renamed}), encoded(sim_schema, sim_cohort))


def test_other_names_for_the_same_genes_are_met_by_symbol(sim_schema: InputSchema, sim_cohort: Cohort) -> None:
    modality = sim_cohort.modalities["mutation"]
    other = replace(modality, features=tuple(f"ENSG{i:05d}" for i in range(len(modality.features))))
    assert_same(encoded(sim_schema, sim_cohort, mutation=other), encoded(sim_schema, sim_cohort))


def test_other_names_of_assays_change_nothing(sim_schema: InputSchema, sim_cohort: Cohort) -> None:
    modality = sim_cohort.modalities["mutation"]
    swap = {"wide": "focused", "focused": "wide"}
    other = replace(
        modality,
        panels={swap[name]: mask for name, mask in modality.panels.items()},
        panel=np.array([swap[str(name)] for name in modality.panel], dtype=object),
    )
    assert_same(encoded(sim_schema, sim_cohort, mutation=other), encoded(sim_schema, sim_cohort))


@pytest.mark.parametrize("name", ["mutation", "expression", "cnv"])
def test_what_an_unseen_assay_does_not_measure_adds_nothing(
    name: str, sim_schema: InputSchema, sim_cohort: Cohort, sim_network: PatientTransformer
) -> None:
    model = model_of(sim_schema, name)
    few = np.arange(0, len(model.features), 3)
    got = encoded(sim_schema, sim_cohort, **{name: columns(sim_cohort.modalities[name], few)})
    bag, scale = sim_network.get_submodule(f"members.0.omics.{name}.bag"), sim_network.get_submodule(f"scales.{name}")
    assert isinstance(bag, FeatureBag)
    assert isinstance(scale, FeatureScale)
    indptr, indices, values, total, panel = (
        torch.from_numpy(got[f"{name}_{part}"]) for part in ("indptr", "indices", "values", "total", "panel")
    )
    row = torch.repeat_interleave(torch.arange(len(panel)), indptr.diff())
    with torch.inference_mode():
        found = bag(indptr, indices, scale(values, indices, total[row], centred=False), panel).numpy()
        z = torch.zeros(len(panel), len(model.features))
        z[row, indices] = values
        every = torch.arange(len(model.features)).expand_as(z)
        z = scale(z, every, total[:, None].expand_as(z), centred=False)
        centre = (scale.mean * scale.inverse_sd).clamp(-10, 10)
        measured = torch.from_numpy(model.measured())[panel]
        z = ((z - centre) * measured)[:, few]
        expected = (z @ bag.weight[few]).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    tokens = got[f"{name}_tokens"]
    assert set(np.unique(tokens[tokens > 0] - 1).tolist()) <= set(few.tolist())
    genes = {sim_schema.gene_id[model.genes[i]] for i in few}
    m = [other.name for other in sim_schema.modalities].index(name)
    known = got["treatment_gene"][got["treatment_state_known"][..., m] > 0]
    assert set(np.unique(known).tolist()) <= genes


def test_totals_of_counts_are_made_up_for_features_that_are_missing(
    sim_schema: InputSchema, sim_cohort: Cohort
) -> None:
    full = encoded(sim_schema, sim_cohort)
    few = np.arange(0, len(model_of(sim_schema, "expression").features), 3)
    part = encoded(sim_schema, sim_cohort, expression=columns(sim_cohort.modalities["expression"], few))
    there = full["expression_panel"] > 0
    ratio = part["expression_total"][there] / full["expression_total"][there]
    assert 0.8 < np.median(ratio) < 1.25, "a third of the genes would have a third of the total"


def test_a_dense_source_equals_a_sparse_one_and_keeps_what_is_missing(
    sim_schema: InputSchema, sim_cohort: Cohort
) -> None:
    modality = sim_cohort.modalities["cnv"]
    values = dense(modality.matrix)[0]
    explicit = replace(modality, matrix=CSRBatch.from_dense(values, keep_zeros=True), explicit=True)
    assert_same(encoded(sim_schema, sim_cohort, cnv=explicit), encoded(sim_schema, sim_cohort))

    holes = values.copy()
    holes[::2, :5] = np.nan
    explicit = replace(modality, matrix=CSRBatch.from_dense(holes, keep_zeros=True), explicit=True)
    got = encoded(sim_schema, sim_cohort, cnv=explicit)
    mean = model_of(sim_schema, "cnv").mean
    at = (got["cnv_indices"] < 5) & np.isin(got["cnv_values"], mean[:5])
    assert at.sum() > N / 4


def test_a_sparse_source_is_spelt_out_for_a_dense_model(sim_schema: InputSchema, sim_cohort: Cohort) -> None:
    dense_models = tuple(replace(m, explicit=m.name == "mutation") for m in sim_schema.modalities)
    got = encoded(replace(sim_schema, modalities=dense_models), sim_cohort)
    measured = model_of(sim_schema, "mutation").measured().sum(axis=1)
    assert np.array_equal(np.diff(got["mutation_indptr"]), measured[got["mutation_panel"]])


def test_what_cannot_be_used_counts_as_not_measured(sim_schema: InputSchema, sim_cohort: Cohort) -> None:
    n = len(sim_cohort.modalities["cnv"].features)
    nobody = replace(sim_cohort.modalities["cnv"], features=tuple(map(str, range(n))), genes=("",) * n)
    other_kind = replace(sim_cohort.modalities["expression"], kind="continuous")
    cohort = replace(sim_cohort, modalities={**sim_cohort.modalities, "cnv": nobody, "expression": other_kind})
    assert align(sim_schema, cohort).unused == {
        "cnv": "no feature in common with the model",
        "expression": "continuous, the model knows count",
    }
    got = encoded(sim_schema, sim_cohort, cnv=nobody, expression=other_kind)
    assert not got["cnv_panel"].any()
    assert not len(got["expression_values"])


def test_an_assay_is_taken_for_the_one_that_covers_most_of_it(sim_schema: InputSchema) -> None:
    model = model_of(sim_schema, "mutation")
    wide, focused = (model.measured()[1 + list(model.panels).index(name)] for name in ("wide", "focused"))
    half = wide & (np.arange(len(wide)) % 2 > 0)
    asked = np.stack([focused, wide, half, np.zeros_like(wide)])
    names = [None if i == 0 else list(model.panels)[i - 1] for i in choose_panels(model, ["a", "b", "c", "d"], asked)]
    assert names == ["focused", "wide", "wide", None]


def test_a_new_drug_is_scored_by_the_targets_that_its_cohort_gives(sim_schema: InputSchema, sim_cohort: Cohort) -> None:
    known = sim_schema.drugs[0]
    cohort = replace(sim_cohort, targets={**sim_cohort.targets, "NEW": ("EGFR", "NOT A GENE"), known: ("KRAS",)})
    schema = align(sim_schema, cohort).schema
    assert schema.targets["NEW"] == ("EGFR", "NOT A GENE")
    assert schema.targets[known] == sim_schema.targets[known], "a drug that the model knows stays what it learned"
    episodes = sim_cohort.episodes[:1].with_columns(pl.Series("treatment", [["NEW"]]))
    _, _, patients = encode_rows(align(sim_schema, cohort), None, episodes, [])
    assert collate(patients, np.arange(1))["treatment_gene"].tolist() == [[[sim_schema.gene_id["EGFR"]]]]
