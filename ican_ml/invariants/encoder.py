"""What every encoder keeps: from patient states to network inputs, bit for bit, on every backend.

In: a schema, and a function from :class:`~ican_ml.inputs.encode.PatientStates` to the padded arrays that
:mod:`ican_ml.inputs.encode` lists; left out, it is the package's own path on each backend that runs here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast, get_args

import numpy as np

from ican_ml.encoding.backends import Backend, BackendUnavailable, resolve
from ican_ml.inputs.encode import PatientStates, collate, encode
from ican_ml.inputs.schema import InputSchema
from ican_ml.invariants.checks import Array, Arrays, Checks, demand_same, named, run_all
from ican_ml.invariants.independence import INDEPENDENCE, Bench, Result
from ican_ml.invariants.patients import extreme_patients

Encoder = Callable[[PatientStates], Arrays]


def check_encoder(schema: InputSchema, encoder: Encoder | None = None, *, seed: int = 0) -> None:
    """Run every check of :func:`encoder_checks`.

    Raises
    ------
    InvariantError
        Naming every invariant that does not hold, what was changed, and how far the inputs differ.
    """
    run_all(encoder_checks(schema, encoder, seed=seed))


def encoder_checks(schema: InputSchema, encoder: Encoder | None = None, *, seed: int = 0) -> Checks:
    """Checks of an encoder, by name.

    Parameters
    ----------
    schema
        What the inputs are made for; the patients are invented from it.
    encoder
        From patients to padded arrays, one row a patient; ``None`` = :func:`ican_ml.inputs.encode.encode` and
        ``collate`` on each available backend, which must also agree with one another.
    seed
        Of the patients and of the orders tried.
    """
    if encoder is not None:
        yield from named(INDEPENDENCE, _bench(schema, encoder, seed))
        return
    for backend in _available():
        yield from named(INDEPENDENCE, _bench(schema, standard_encoder(schema, backend), seed), f"{backend}: ")
    yield from named([_backends_agree], _bench(schema, standard_encoder(schema), seed))


def standard_encoder(schema: InputSchema, backend: Backend = "reference") -> Encoder:
    """The package's own path from patients to padded arrays."""

    def encoder(states: PatientStates) -> Arrays:
        encoded = encode(schema, states, backend=backend)
        return collate(encoded, np.arange(encoded.n_rows))

    return encoder


def _available() -> list[Backend]:
    found: list[Backend] = []
    for name in set(get_args(Backend)) - {"auto"}:
        try:
            resolve(name)
        except BackendUnavailable:
            continue
        found.append(cast("Backend", name))
    return sorted(found)


def _bench(schema: InputSchema, encoder: Encoder, seed: int) -> Bench:
    def ask(states: PatientStates) -> list[Result]:
        arrays = encoder(states)
        return [_content(arrays, row, len(asked)) for row, asked in enumerate(states.regimens)]

    return Bench(schema, ask, seed)


def _content(arrays: Arrays, row: int, n_regimens: int) -> Result:
    """One patient's part of a batch without its padding, which is zero."""
    sparse = {name.removesuffix("_indptr") for name in arrays if name.endswith("_indptr")}
    patient: Arrays = {}
    regimens: list[Arrays] = [{} for _ in range(n_regimens)]
    for name, values in arrays.items():
        stem, _, last = name.rpartition("_")
        if name.startswith("treatment_"):
            for slot, regimen in enumerate(regimens):
                regimen[name] = _trimmed(values[row, slot])
        elif stem in sparse and last in ("indptr", "indices", "values"):
            start, stop = arrays[f"{stem}_indptr"][row : row + 2].tolist()
            patient[name] = np.array(stop - start) if last == "indptr" else values[start:stop]
        else:
            patient[name] = _trimmed(values[row])
    return Result(patient, regimens)


def _trimmed(values: Array) -> Array:
    """Without the zeros at the end of each axis."""
    filled = np.nonzero(values) if values.ndim else ()
    return values[tuple(slice(int(places.max(initial=-1)) + 1) for places in filled)]


def _backends_agree(bench: Bench) -> None:
    for states in (bench.states, extreme_patients(bench.schema)):
        expected = standard_encoder(bench.schema)(states)
        for backend in _available():
            found = standard_encoder(bench.schema, backend)(states)
            demand_same(f"backend {backend} instead of reference", found, expected)
