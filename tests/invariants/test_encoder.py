"""The package's encoder keeps its invariants on every backend, and a broken one is found and named."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ican_ml.inputs.encode import PatientStates
from ican_ml.inputs.schema import InputSchema, ModalitySchema
from ican_ml.invariants.checks import Arrays, InvariantError
from ican_ml.invariants.encoder import check_encoder, encoder_checks, standard_encoder

from .conftest import WITHOUT, SchemaOf

GENES = 14_000


@pytest.mark.parametrize("lacks", WITHOUT)
def test_the_packages_encoder_keeps_them(schema_without: SchemaOf, lacks: str) -> None:
    check_encoder(schema_without(lacks), seed=WITHOUT.index(lacks))


def test_on_every_backend_or_as_given(sim_schema: InputSchema) -> None:
    prefixes = {name.partition(":")[0] for name, _ in encoder_checks(sim_schema)}
    assert prefixes >= {"cpu", "reference", "backends agree"}
    given = [name for name, _ in encoder_checks(sim_schema, standard_encoder(sim_schema))]
    assert "padding" in given
    assert len(set(given)) == len(given)


def test_of_14_000_genes_as_counts_and_as_dense_values(schema_without: SchemaOf) -> None:
    rng = np.random.default_rng(5)
    names = tuple(f"G{i}" for i in range(GENES))
    wide = ModalitySchema(
        name="wide",
        kind="count",
        explicit=False,
        features=names,
        genes=names,
        mean=rng.uniform(0, 3, GENES).astype(np.float32),
        inverse_sd=rng.uniform(0, 1e4, GENES).astype(np.float32),
        rank_scale=rng.uniform(0, 1e4, GENES).astype(np.float32),
        panels={"all": None},
        max_tokens=64,
    )
    dense = replace(wide, name="dense", kind="continuous", explicit=True)
    check_encoder(replace(schema_without("anything"), modalities=(wide, dense), genes=names))


def _scaled_by_the_batch(arrays: Arrays, states: PatientStates) -> Arrays:
    return arrays | {"summary": arrays["summary"] / max(1.0, np.abs(arrays["summary"]).max())}


def _padding_that_is_not_zero(arrays: Arrays, states: PatientStates) -> Arrays:
    return arrays | {"event_gap": np.where(arrays["event_code"] > 0, arrays["event_gap"], -1)}


def _ranks_in_the_batch(arrays: Arrays, states: PatientStates) -> Arrays:
    return arrays | {"summary": arrays["summary"] + np.arange(len(arrays["summary"]))[:, None]}


def _first_drug_alone(arrays: Arrays, states: PatientStates) -> Arrays:
    first = [sum(map(ord, regimen[0])) if regimen else 0 for asked in states.regimens for regimen in asked[-1:]]
    return arrays | {"summary": arrays["summary"] + np.array(first)[:, None]}


def _mean_of_no_events(arrays: Arrays, states: PatientStates) -> Arrays:
    n_events = (arrays["event_code"] > 0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        mean = arrays["event_value"].sum(axis=1) / n_events
    return arrays | {"summary": arrays["summary"] + mean[:, None]}


def _zero_for_not_measured(arrays: Arrays, states: PatientStates) -> Arrays:
    known = {"treatment_state_known": np.ones_like(arrays["treatment_state_known"])}
    return arrays | known if "expression" in states.omics else arrays


def _overflow(arrays: Arrays, states: PatientStates) -> Arrays:
    with np.errstate(over="ignore"):
        return arrays | {"expression_total": arrays["expression_total"] ** 2}


BROKEN: list[tuple[Callable[[Arrays, PatientStates], Arrays], str]] = [
    (_scaled_by_the_batch, "batch composition"),
    (_padding_that_is_not_zero, "padding"),
    (_ranks_in_the_batch, "order of rows"),
    (_first_drug_alone, "order of drugs"),
    (_mean_of_no_events, "empty record"),
    (_zero_for_not_measured, "every subset of modalities"),
    (_overflow, "extreme values"),
]


@pytest.mark.parametrize(("spoil", "name"), BROKEN)
def test_a_broken_encoder_is_found_and_named(
    schema_without: SchemaOf, spoil: Callable[[Arrays, PatientStates], Arrays], name: str
) -> None:
    schema = schema_without("most omics")
    encoder = standard_encoder(schema)
    with pytest.raises(InvariantError) as caught:
        check_encoder(schema, lambda states: spoil(encoder(states), states))
    failed = {failure.invariant for failure in caught.value.failures}
    assert name in failed
    assert len(failed) < 15
