"""From a bundle and a plain patient dictionary to ranked treatments, with NumPy and onnxruntime alone.

    predictor = Predictor("runs/demo/bundle")
    answer = predictor.predict(patient, [("osimertinib",), ("cisplatin", "pemetrexed")])

The patient is encoded once and every regimen asks it in one forward pass; the order and number of regimens change no
answer. What a patient looks like: :mod:`ican_ml.inputs.patient`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ican_ml.bundle.read import Arrays, BundleError, open_bundle
from ican_ml.inputs.answer import members_of, summarise, uncertainty
from ican_ml.inputs.encode import collate, encode
from ican_ml.inputs.patient import PatientError, PatientNotes, read_patient
from ican_ml.inputs.regimens import INHIBITOR, Regimen


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """One regimen's predictions.

    Attributes
    ----------
    regimen
        Its drugs.
    prediction
        By task: probability of the outcome (binary), expected survival in days within the observed span (survival), or
        the expected value (regression).
    unknown_drugs
        Drugs that training did not see: predicted from their targets alone, or, without any, as an unknown drug.
    sets
        By calibrated binary task: the answers that are not ruled out at the task's coverage. One, or both or neither
        where it is undecided (:mod:`ican_ml.evaluation.conformal`).
    uncertainty
        By task of a model with several members: `aleatoric` and `epistemic`, see
        :func:`ican_ml.inputs.answer.uncertainty`.
    """

    regimen: Regimen
    prediction: dict[str, float]
    unknown_drugs: tuple[str, ...]
    sets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    uncertainty: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Regimens from most to least promising for the first task, and what was left aside of the patient.

    ``coverage``: by task with prediction sets, how often these hold the truth.
    """

    task: str
    ranked: tuple[Ranked, ...]
    notes: PatientNotes
    coverage: dict[str, float] = field(default_factory=dict)


class Predictor:
    """Answers for one bundle.

    Parameters
    ----------
    bundle
        Folder of the bundle.
    threads
        Threads of one prediction.

    Raises
    ------
    BundleError
        If the bundle was changed, or this machine does not reproduce its golden cases.
    """

    def __init__(self, bundle: str | Path, *, threads: int = 1) -> None:
        self._bundle = open_bundle(bundle)
        self.schema = self._bundle.schema
        self.calibration = self._bundle.calibration
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(self._bundle.model, options, providers=["CPUExecutionProvider"])
        self._input_names = {node.name for node in self._session.get_inputs()}
        self._output_names = [node.name for node in self._session.get_outputs()]
        self._prove_golden_cases()

    def predict(self, patient: Mapping[str, Any], regimens: Sequence[Regimen]) -> Answer:
        """Rank regimens for one patient.

        Parameters
        ----------
        patient
            See :mod:`ican_ml.inputs.patient`.
        regimens
            At least one; each a tuple of drug names (``inhibitor:<gene>`` for a virtual inhibitor). Only a model of a
            cohort without drugs answers for ``()``.

        Raises
        ------
        PatientError
            If the patient or a regimen cannot be used.
        """
        regimens = [self._checked(i, regimen) for i, regimen in enumerate(regimens)]
        if not regimens:
            raise PatientError("treatments: expected at least one regimen, got none")
        inputs, notes = self.inputs(patient, regimens)
        outputs = self.run(inputs)
        predictions = {task.name: summarise(task, outputs[task.name])[0] for task in self.schema.tasks}
        doubts = {
            task.name: uncertainty(task, outputs[members_of(task)])
            for task in self.schema.tasks
            if members_of(task) in outputs
        }
        headline = self.schema.tasks[0]
        sign = 1 if headline.kind == "regression" else -1
        order = np.argsort(sign * predictions[headline.name], kind="stable")
        ranked = tuple(
            Ranked(
                regimen=regimens[i],
                prediction={name: float(values[i]) for name, values in predictions.items()},
                unknown_drugs=tuple(
                    d for d in regimens[i] if d not in self.schema.drug_id and not d.startswith(INHIBITOR)
                ),
                sets={name: c.answer_set(predictions[name][i]) for name, c in self.calibration.items()},
                uncertainty={
                    name: {"aleatoric": float(aleatoric[0, i]), "epistemic": float(epistemic[0, i])}
                    for name, (aleatoric, epistemic) in doubts.items()
                },
            )
            for i in order
        )
        coverage = {name: calibration.coverage for name, calibration in self.calibration.items()}
        return Answer(task=headline.name, ranked=ranked, notes=notes, coverage=coverage)

    def inputs(self, patient: Mapping[str, Any], regimens: Sequence[Regimen]) -> tuple[Arrays, PatientNotes]:
        """The network's input arrays for one patient (see :mod:`ican_ml.inputs.encode`)."""
        states, notes = read_patient(self.schema, patient, regimens)
        encoded = encode(self.schema, states, backend="reference")
        return collate(encoded, np.zeros(1, np.int64)), notes

    def run(self, inputs: Arrays) -> Arrays:
        """The network's outputs by name: a task, or what its members say."""
        used = {name: values for name, values in inputs.items() if name in self._input_names}
        return dict(zip(self._output_names, self._session.run(None, used), strict=True))

    def _checked(self, i: int, given: object) -> Regimen:
        if not isinstance(given, list | tuple) or not all(isinstance(drug, str) and drug for drug in given):
            raise PatientError(f"treatments[{i}]: expected a list of drug names, got {given!r}")
        regimen = tuple(sorted(set(given)))
        if not regimen and self.schema.drugs:
            raise PatientError(f"treatments[{i}]: expected at least one drug, got none")
        for drug in regimen:
            if drug.startswith(INHIBITOR) and drug.removeprefix(INHIBITOR) not in self.schema.gene_id:
                raise PatientError(
                    f"treatments[{i}]: expected a gene that the model knows, got {drug!r}; it is none of its "
                    f"{len(self.schema.genes)} genes"
                )
        return regimen

    def _prove_golden_cases(self) -> None:
        outputs = self.run(self._bundle.golden_inputs)
        for name, expected in self._bundle.golden_outputs.items():
            difference = float(np.abs(outputs[name].astype(np.float64) - expected.astype(np.float64)).max())
            if not difference <= self._bundle.tolerance:
                raise BundleError(
                    f"bundle: golden case of {name!r} differs by {difference:.2g}, expected at most "
                    f"{self._bundle.tolerance:g}; this machine or its onnxruntime does not compute what was exported"
                )
