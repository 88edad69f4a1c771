"""What every exported bundle keeps: the checks of :mod:`ican_ml.invariants.answers` through onnxruntime, and those of
plain patient dictionaries. NumPy and onnxruntime alone, so that a hospital can run them where it predicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ican_ml.bundle.golden import as_document
from ican_ml.evaluation.applicability import EMBEDDING
from ican_ml.inputs.encode import Arrays, PatientStates
from ican_ml.inputs.regimens import Regimen
from ican_ml.invariants.answers import TOLERANCE, answer_checks
from ican_ml.invariants.checks import Checks, demand_same, named, run_all
from ican_ml.invariants.patients import draw_patients, shuffled
from ican_ml.serving.predictor import Predictor


def check_bundle(path: str | Path, *, seed: int = 0) -> None:
    """Run every check of :func:`bundle_checks`.

    Raises
    ------
    BundleError
        If the bundle was changed, or does not reproduce its golden cases here.
    InvariantError
        Naming every invariant that does not hold, what was changed, and how far the answers differ.
    """
    run_all(bundle_checks(path, seed=seed))


def bundle_checks(path: str | Path, *, seed: int = 0) -> Checks:
    """Checks of a bundle, by name.

    Parameters
    ----------
    path
        Folder of the bundle.
    seed
        Of the patients, invented from the bundle's schema, and of the orders tried.

    Raises
    ------
    BundleError
        If the bundle was changed, or does not reproduce its golden cases here.
    """
    predictor = Predictor(path)
    yield from answer_checks(lambda inputs: _answers(predictor, inputs), predictor.schema, seed=seed)
    states = draw_patients(predictor.schema, seed=seed)
    yield from named(_CHECKS, _Bench(predictor, states, seed))


def _answers(predictor: Predictor, inputs: Arrays) -> Arrays:
    """What the network says of regimens; its embedding of the patient has none."""
    return {name: values for name, values in predictor.run(inputs).items() if name != EMBEDDING}


@dataclass(frozen=True)
class _Bench:
    predictor: Predictor
    states: PatientStates
    seed: int

    def regimens(self, row: int) -> list[Regimen]:
        asked = [regimen for regimen in self.states.regimens[row] if regimen]
        return asked or [("no such drug",)]

    def predictions(self, document: dict[str, object], regimens: list[Regimen]) -> dict[Regimen, dict[str, float]]:
        ranked = self.predictor.predict(document, regimens).ranked
        return {answer.regimen: answer.prediction for answer in ranked}


def _order_of_keys_and_events(bench: _Bench) -> None:
    rng = np.random.default_rng(bench.seed)
    for row in range(len(bench.states.regimens)):
        document = as_document(bench.predictor.schema, bench.states, row)
        found = bench.predictions(shuffled(document, rng), bench.regimens(row))
        demand_same("keys and events of a dictionary shuffled", found, bench.predictions(document, bench.regimens(row)))


def _order_of_a_request(bench: _Bench) -> None:
    for row in range(len(bench.states.regimens)):
        document, regimens = as_document(bench.predictor.schema, bench.states, row), bench.regimens(row)
        expected = bench.predictions(document, regimens)
        turned = [tuple(reversed(regimen)) for regimen in reversed(regimens)]
        found = bench.predictions(document, turned)
        demand_same("regimens and their drugs turned round", found, expected, tolerance=TOLERANCE)
        alone = {regimen: bench.predictions(document, [regimen])[regimen] for regimen in expected}
        demand_same("each regimen asked alone", alone, expected, tolerance=TOLERANCE)


_CHECKS = (_order_of_keys_and_events, _order_of_a_request)
