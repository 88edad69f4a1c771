"""What inputs and answers share: a patient's result is its own. The same checks for encoders, networks and bundles.

In: a schema, and a function from patient states to one :class:`Result` a patient. Nothing may depend on who else is in
the batch, on the order in which a source lists rows, events, features, drugs and regimens, or on what else is asked;
whatever is missing, and however extreme a value, the result is finite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ican_ml.bundle.golden import as_document
from ican_ml.encoding.csr import CSRBatch
from ican_ml.inputs.encode import PatientStates
from ican_ml.inputs.patient import read_patient
from ican_ml.inputs.regimens import Regimen
from ican_ml.inputs.schema import InputSchema
from ican_ml.invariants.checks import Arrays, Failure, InvariantError, demand_finite, demand_same
from ican_ml.invariants.patients import (
    Int64,
    draw_patients,
    extreme_patients,
    one_token,
    shuffled,
    subsets,
    take,
    through_source,
    without_events,
    without_modalities,
)


@dataclass(frozen=True)
class Result:
    """What was found for one patient: of the patient itself, and of each regimen asked."""

    patient: Arrays
    regimens: list[Arrays]


@dataclass(frozen=True)
class Bench:
    """What the checks work on: ``ask`` gives the results of some patients, the same within ``tolerance``."""

    schema: InputSchema
    ask: Callable[[PatientStates], list[Result]]
    seed: int
    tolerance: float = 0.0

    @cached_property
    def states(self) -> PatientStates:
        """Patients invented from the schema."""
        return draw_patients(self.schema, seed=self.seed)

    @cached_property
    def results(self) -> list[Result]:
        """Theirs, all in one batch."""
        return self.ask(self.states)

    def order(self, size: int) -> Int64:
        """A random order of so many things."""
        return np.random.default_rng(self.seed + 1).permutation(size)

    def same(self, changed: str, found: list[Result], expected: list[Result] | None = None) -> None:
        """Raise unless these results are the expected ones; left out, those of the unchanged patients."""
        for one, other in zip(found, self.results if expected is None else expected, strict=True):
            demand_same(changed, one.patient, other.patient, tolerance=self.tolerance)
            demand_same(changed, one.regimens, other.regimens, tolerance=self.tolerance)

    def finite(self, changed: str, states: PatientStates) -> list[Result]:
        """Results of some patients, all of which must be finite."""
        results = self.ask(states)
        for result in results:
            for arrays in (result.patient, *result.regimens):
                demand_finite(changed, arrays)
        return results

    def same_in_any_batch(self, changed: str, states: PatientStates, batches: list[list[int]]) -> None:
        """Each batch of rows has the results that the rows have among all."""
        together = self.finite(changed, states)
        for rows in batches:
            self.same(changed, self.ask(take(states, rows)), [together[row] for row in rows])


def _results_are_finite(bench: Bench) -> None:
    bench.finite("patients invented from the schema", bench.states)


def _patients_and_regimens_differ(bench: Bench) -> None:
    """Where nothing moves the result, no other check says anything."""
    first, *others = ([r.patient, r.regimens[0]] for r in bench.results)
    if bench.schema.modalities or bench.schema.summary_names:
        _demand_another("another patient", first, others)
    if bench.schema.drugs:
        first, *others = ([regimen] for regimen in bench.results[-1].regimens)
        _demand_another("another regimen", first, others)


def _demand_another(changed: str, first: list[Arrays], others: list[list[Arrays]]) -> None:
    for other in others:
        try:
            demand_same(changed, other, first)
        except InvariantError:
            return
    raise InvariantError([Failure(changed=changed, expected="another result", got="the same for all", difference=0.0)])


def _padding(bench: Bench) -> None:
    longest = 2
    for row in range(len(bench.results)):
        beside, alone = (bench.ask(take(bench.states, rows)) for rows in ([row, longest], [row]))
        bench.same("a longer record beside it", beside[:1], alone)


def _batch_composition(bench: Bench) -> None:
    n = len(bench.results)
    bench.same_in_any_batch("alone instead of among others", bench.states, [[row] for row in range(n)])
    bench.same_in_any_batch("in batches of 2 and 7, some twice", bench.states, [[3, 1], [3, 1, 4, 1, 5 % n, 3, 0]])


def _order_of_rows(bench: Bench) -> None:
    bench.same_in_any_batch("rows in another order", bench.states, [bench.order(len(bench.results)).tolist()])


def _order_of_source_rows(bench: Bench) -> None:
    if (events := bench.states.events) is not None:
        read = through_source(events, bench.order(len(events.code)))
        bench.same("source rows in another order", bench.ask(replace(bench.states, events=read)))


def _order_of_events_within_a_timestamp(bench: Bench) -> None:
    if (events := bench.states.events) is not None:
        luck = bench.order(len(events.code))
        read = through_source(events, np.lexsort((luck, -events.gap, events.row_ids())))
        bench.same("events of one time swapped", bench.ask(replace(bench.states, events=read)))


def _order_of_features(bench: Bench) -> None:
    omics = {}
    for name, part in bench.states.omics.items():
        matrix = part.matrix
        order = np.lexsort((bench.order(matrix.nnz), matrix.row_ids()))
        mixed = CSRBatch(matrix.indptr, matrix.indices[order], matrix.values[order], matrix.n_features)
        omics[name] = replace(part, matrix=mixed.sorted())
    bench.same("features in another order in the source", bench.ask(replace(bench.states, omics=omics)))


def _order_of_a_dictionary(bench: Bench) -> None:
    rng = np.random.default_rng(bench.seed)
    for row, regimens in enumerate(bench.states.regimens):
        document = as_document(bench.schema, bench.states, row)
        expected, found = (read_patient(bench.schema, d, regimens)[0] for d in (document, shuffled(document, rng)))
        bench.same("keys and events of a dictionary shuffled", bench.ask(found), bench.ask(expected))


def _order_of_drugs(bench: Bench) -> None:
    turned = [[(*regimen[::-1], *regimen[:1]) for regimen in asked] for asked in bench.states.regimens]
    bench.same("drugs of a regimen turned round, one twice", bench.ask(replace(bench.states, regimens=turned)))


def _order_of_regimens(bench: Bench) -> None:
    for changed, slots in (("in another order", [2, 0, 1]), ("fifty asked", [i % 3 for i in range(50)])):
        _ask_other_regimens(bench, f"regimens {changed}", slots)


def _regimens_do_not_see_one_another(bench: Bench) -> None:
    for slot in range(max(map(len, bench.states.regimens))):
        _ask_other_regimens(bench, "one regimen asked instead of several", [slot])


def _ask_other_regimens(bench: Bench, changed: str, slots: list[int]) -> None:
    """Every patient asked about the regimens of these numbers among its own (counted round)."""
    numbers = [[slot % len(asked) for slot in slots] for asked in bench.states.regimens]
    regimens: list[list[Regimen]] = [
        [asked[i] for i in chosen] for asked, chosen in zip(bench.states.regimens, numbers, strict=True)
    ]
    expected = [
        replace(result, regimens=[result.regimens[i] for i in chosen])
        for result, chosen in zip(bench.results, numbers, strict=True)
    ]
    bench.same(changed, bench.ask(replace(bench.states, regimens=regimens)), expected)


def _empty_record(bench: Bench) -> None:
    found = bench.finite("no records", replace(bench.states, events=None))
    if bench.states.events is not None:
        empty = replace(bench.states, events=without_events(bench.states.events))
        bench.same("records without events instead of none", bench.ask(empty), found)


def _one_token(bench: Bench) -> None:
    batches = [[row] for row in range(len(bench.results))]
    bench.same_in_any_batch("one event and one feature a patient", one_token(bench.states), batches)


def _absent_treatment(bench: Bench) -> None:
    found = bench.finite("no treatment named", replace(bench.states, regimens=[[()]] * len(bench.results)))
    expected = [replace(result, regimens=result.regimens[:1]) for result in bench.results]  # all were asked () first
    bench.same("no treatment named", found, expected)


def _nothing_known(bench: Bench) -> None:
    nothing = PatientStates(omics={}, events=None, covariates={}, regimens=[[()]] * 3)
    found = bench.finite("nothing known of anyone", nothing)
    bench.same("nothing known, another row", found, found[:1] * 3)


def _every_subset_of_modalities(bench: Bench) -> None:
    for chosen in subsets(bench.schema):
        changed = f"measured {', '.join(chosen) or 'nothing'} alone"
        dropped = replace(bench.states, omics={name: bench.states.omics[name] for name in chosen})
        found = bench.finite(changed, dropped)
        bench.same(f"{changed}, by assay number 0", bench.ask(without_modalities(bench.states, chosen)), found)


def _extreme_values(bench: Bench) -> None:
    changed = "values of 1e30, counts of 14,000, ages 0 and 120, gaps of 100 years"
    states = extreme_patients(bench.schema)
    bench.same_in_any_batch(changed, states, [[row] for row in range(len(states.regimens))])


INDEPENDENCE = (
    _results_are_finite,
    _patients_and_regimens_differ,
    _padding,
    _batch_composition,
    _order_of_rows,
    _order_of_source_rows,
    _order_of_events_within_a_timestamp,
    _order_of_features,
    _order_of_a_dictionary,
    _order_of_drugs,
    _order_of_regimens,
    _regimens_do_not_see_one_another,
    _empty_record,
    _one_token,
    _absent_treatment,
    _nothing_known,
    _every_subset_of_modalities,
    _extreme_values,
)
