"""What every network keeps, whether it runs in torch or as an exported graph: the same checks for both. NumPy alone.

In: a schema, and a function from input arrays (:mod:`ican_ml.inputs.encode`) to outputs ``[B, R, ...]`` by task. Two
answers are the same within 1e-5: absolute on outputs up to 1, relative beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ican_ml.inputs.encode import PatientStates
from ican_ml.inputs.schema import InputSchema
from ican_ml.invariants.checks import Array, Arrays, Checks, demand_same, named
from ican_ml.invariants.encoder import standard_encoder
from ican_ml.invariants.independence import INDEPENDENCE, Bench, Result
from ican_ml.invariants.patients import draw_patients, subsets

Answer = Callable[[Arrays], Arrays]

TOLERANCE = 1e-5
_EVENTS = ("event_code", "event_value", "event_has_value", "event_gap", "event_age")
_DRUGS, _CLASSES = ("treatment_drug",), ("treatment_class",)
_GENES = ("treatment_gene", "treatment_state", "treatment_state_known")


def answer_checks(answer: Answer, schema: InputSchema, *, seed: int = 0) -> Checks:
    """Checks of a network by name, through its answers alone.

    Parameters
    ----------
    answer
        From input arrays to outputs by task.
    schema
        What the network was made for; the patients are invented from it.
    seed
        Of the patients and of the orders tried.
    """
    encoder = standard_encoder(schema)

    def ask(states: PatientStates) -> list[Result]:
        outputs = answer(encoder(states))
        return [
            Result({}, [{name: output[row, slot] for name, output in outputs.items()} for slot in range(len(asked))])
            for row, asked in enumerate(states.regimens)
        ]

    yield from named(INDEPENDENCE, Bench(schema, ask, seed, TOLERANCE))
    yield from named(_CHECKS, _Inputs(answer, schema, encoder(draw_patients(schema, seed=seed)), seed))


@dataclass(frozen=True)
class _Inputs:
    """The arrays of some patients, to be changed in themselves."""

    answer: Answer
    schema: InputSchema
    arrays: Arrays
    seed: int

    @cached_property
    def outputs(self) -> Arrays:
        return self.answer(self.arrays)

    @property
    def tokens(self) -> list[tuple[str, ...]]:
        return [(f"{m.name}_tokens", f"{m.name}_token_values") for m in self.schema.modalities]

    def luck(self, like: Array) -> Array:
        return np.random.default_rng(self.seed + 2).random(like.shape)

    def same(self, changed: str, arrays: Arrays) -> None:
        """Changed inputs have the answers of the unchanged ones."""
        n_regimens = self.arrays["treatment_drug"].shape[1]
        found = {name: output[:, :n_regimens] for name, output in self.answer(arrays).items()}
        demand_same(changed, found, self.outputs, tolerance=TOLERANCE)

    def reordered(self, names: Sequence[str], order: Array) -> Arrays:
        """Another order of the last axis of ``order``, for every row."""
        moved, axis = dict(self.arrays), order.ndim - 1
        for name in names:
            values = self.arrays[name]
            aligned = order.reshape(order.shape + (1,) * (values.ndim - order.ndim))
            moved[name] = np.take_along_axis(values, aligned, axis)
        return moved


def _the_same_question_twice(inputs: _Inputs) -> None:
    demand_same("asked again", inputs.answer(inputs.arrays), inputs.outputs)


def _padding_of_the_arrays(inputs: _Inputs) -> None:
    regimens = (*_DRUGS, *_CLASSES, *_GENES)
    parts = [*((names, 1) for names in inputs.tokens), (_EVENTS, 1), (_DRUGS, 2), (_CLASSES, 2), (_GENES, 2)]
    for names, axis in [*parts, (regimens, 1)]:
        padded = dict(inputs.arrays)
        for name in names:
            if padded[name].shape[axis] > 1 or names is regimens:  # an axis that is 1 long for all may be fixed
                padded[name] = np.pad(padded[name], [(0, 5 * (a == axis)) for a in range(padded[name].ndim)])
        inputs.same(f"axis {axis} of {', '.join(names)} padded", padded)


def _order_of_event_tokens_within_a_timestamp(inputs: _Inputs) -> None:
    gap, real = inputs.arrays["event_gap"], inputs.arrays["event_code"] > 0
    when = np.where(real, -gap, np.inf)
    order = np.lexsort((inputs.luck(gap), when))
    place = np.argsort(np.argsort(when, axis=1, kind="stable"), axis=1)  # the places of each time stay
    inputs.same("events of one time swapped", inputs.reordered(_EVENTS, np.take_along_axis(order, place, 1)))


def _order_of_feature_tokens(inputs: _Inputs) -> None:
    for names in inputs.tokens:
        order = np.argsort(inputs.luck(inputs.arrays[names[0]]), axis=-1)
        inputs.same(f"{names[0]} in another order", inputs.reordered(names, order))


def _order_of_stored_features(inputs: _Inputs) -> None:
    for modality in inputs.schema.modalities:
        indptr, *parts = (inputs.arrays[f"{modality.name}_{part}"] for part in ("indptr", "indices", "values"))
        rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        order = np.lexsort((inputs.luck(rows), rows))
        mixed = {f"{modality.name}_{part}": v[order] for part, v in zip(("indices", "values"), parts, strict=True)}
        inputs.same(f"features of {modality.name} in another order", inputs.arrays | mixed)


def _order_of_drugs_and_targets(inputs: _Inputs) -> None:
    for names in (_DRUGS, _CLASSES, _GENES):
        order = np.argsort(inputs.luck(inputs.arrays[names[0]]), axis=-1)
        inputs.same(f"{names[0]} in another order", inputs.reordered(names, order))


def _values_that_were_not_measured(inputs: _Inputs) -> None:
    """What lies where nothing was measured is not read."""
    for chosen in subsets(inputs.schema):
        unmeasured, other = (
            inputs.arrays | {name: inputs.arrays[name].copy() for name in ("treatment_state", "treatment_state_known")}
            for _ in range(2)
        )
        for m, modality in enumerate(inputs.schema.modalities):
            if modality.name in chosen:
                continue
            for each in (unmeasured, other):
                each[f"{modality.name}_panel"] = np.zeros_like(each[f"{modality.name}_panel"])
                each["treatment_state_known"][..., m] = 0
            other["treatment_state"][..., m] += 3
            for name in (f"{modality.name}_{part}" for part in ("values", "token_values", "total")):
                other[name] = other[name] + 1
        changed = f"other values where only {', '.join(chosen) or 'nothing'} was measured"
        demand_same(changed, inputs.answer(other), inputs.answer(unmeasured), tolerance=TOLERANCE)


_CHECKS = (
    _the_same_question_twice,
    _padding_of_the_arrays,
    _order_of_event_tokens_within_a_timestamp,
    _order_of_feature_tokens,
    _order_of_stored_features,
    _order_of_drugs_and_targets,
    _values_that_were_not_measured,
)
