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
from typing import Any, Literal

import numpy as np
import onnxruntime

from ican_ml.bundle.golden import prove
from ican_ml.bundle.read import BundleError, open_bundle
from ican_ml.evaluation.applicability import EMBEDDING, Judgement
from ican_ml.inputs.answer import Float64, event_free, members_of, summarise, uncertainty
from ican_ml.inputs.encode import Arrays, joined
from ican_ml.inputs.limits import InputError, check_inputs, input_limits
from ican_ml.inputs.patient import PatientError, PatientNotes, patient_inputs
from ican_ml.inputs.regimens import INHIBITOR, Regimen
from ican_ml.serving.explain import Driver, variants

Device = Literal["cpu", "cuda"]
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_MOST_DRIVERS, _VARIANTS_AT_ONCE = 12, 32


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
    interval
        By calibrated binary task: 95% interval of the share in whom it happens, among all who get this probability.
    uncertainty
        By task of a model with several members: `aleatoric` and `epistemic`, see
        :func:`ican_ml.inputs.answer.uncertainty`.
    event_free
        By survival task: probability to be free of the event at each of the task's edges.
    """

    regimen: Regimen
    prediction: dict[str, float]
    unknown_drugs: tuple[str, ...]
    sets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    uncertainty: dict[str, dict[str, float]] = field(default_factory=dict)
    event_free: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Regimens from most to least promising for the first task, and what was left aside of the patient.

    Attributes
    ----------
    coverage
        By task with prediction sets, how often these hold the truth.
    applicability
        Whether the model should be believed for this patient; None where the bundle cannot tell.
    drivers
        Parts of the patient with the largest effect on the first regimen's first prediction; empty unless asked for.
    """

    task: str
    ranked: tuple[Ranked, ...]
    notes: PatientNotes
    coverage: dict[str, float] = field(default_factory=dict)
    applicability: Judgement | None = None
    drivers: tuple[Driver, ...] = ()


class Predictor:
    """Answers for one bundle.

    Parameters
    ----------
    bundle
        Folder of the bundle.
    threads
        Threads of one prediction.
    device
        Where the network runs: ``cpu`` or ``cuda``, never another than asked for.

    Raises
    ------
    BundleError
        If the bundle was changed, or this machine does not reproduce its golden cases.
    ValueError
        If onnxruntime cannot use the device.
    """

    def __init__(self, bundle: str | Path, *, threads: int = 1, device: Device = "cpu") -> None:
        self._bundle = open_bundle(bundle)
        self.schema = self._bundle.schema
        self.calibration = self._bundle.calibration
        self.card = self._bundle.card
        self.digest = self._bundle.digest
        self._limits = input_limits(self.schema)
        self._session = _session(self._bundle.model, threads, device)
        self._input_names = {node.name for node in self._session.get_inputs()}
        self._output_names = [node.name for node in self._session.get_outputs()]
        if self._input_names - set(self._limits) or self._input_names != {e["name"] for e in self._bundle.inputs}:
            raise BundleError("bundle: the network's inputs are not those that its schema names; export it again")
        self.prove()

    @property
    def version(self) -> str:
        """Names the bundle: the beginning of its manifest's sha256."""
        return self.digest[:12]

    @property
    def input_entries(self) -> tuple[Mapping[str, Any], ...]:
        """Name, dtype and shape of each of the network's inputs."""
        return self._bundle.inputs

    @property
    def output_entries(self) -> tuple[Mapping[str, Any], ...]:
        """Name, dtype and shape of each of the network's outputs."""
        return self._bundle.outputs

    def predict(self, patient: Mapping[str, Any], regimens: Sequence[Regimen], *, explain: bool = False) -> Answer:
        """Rank regimens for one patient.

        Parameters
        ----------
        patient
            See :mod:`ican_ml.inputs.patient`.
        regimens
            At least one; each a tuple of drug names (``inhibitor:<gene>`` for a virtual inhibitor). Only a model of a
            cohort without drugs answers for ``()``.
        explain
            Also tell what drove the first answer, see :mod:`ican_ml.serving.explain`.

        Raises
        ------
        PatientError
            If the patient or a regimen cannot be used.
        """
        return self.predict_batch([(patient, regimens)], explain=explain)[0]

    def predict_batch(
        self, asked: Sequence[tuple[Mapping[str, Any], Sequence[Regimen]]], *, explain: bool = False
    ) -> list[Answer]:
        """Answers for several patients, each with its own regimens, in one forward pass; see :meth:`predict`."""
        checked = [[self._checked(i, regimen) for i, regimen in enumerate(regimens)] for _, regimens in asked]
        if not all(checked):
            raise PatientError("treatments: expected at least one regimen, got none")
        read = [self.inputs(patient, regimens) for (patient, _), regimens in zip(asked, checked, strict=True)]
        outputs = self.run(joined([inputs for inputs, _ in read]) if len(read) > 1 else read[0][0])
        answers = []
        for b, (regimens, (_, notes)) in enumerate(zip(checked, read, strict=True)):
            own = {
                name: values[b] if name == EMBEDDING else values[b, : len(regimens)] for name, values in outputs.items()
            }
            answers.append(self._answer(asked[b][0], regimens, own, notes, explain=explain))
        return answers

    def inputs(self, patient: Mapping[str, Any], regimens: Sequence[Regimen]) -> tuple[Arrays, PatientNotes]:
        """The network's input arrays for one patient (see :mod:`ican_ml.inputs.encode`)."""
        return patient_inputs(self.schema, patient, regimens)

    def patient_of(
        self, bundle: Mapping[str, Any], *, timezone: str | None, prediction_time: str | None, assay: str | None
    ) -> dict[str, Any]:
        """The plain patient of a FHIR Bundle (:mod:`ican_ml.cohort.fhir`), without modalities that the model lacks.

        ``assay`` names that of its variants, where the model knows several.
        """
        from ican_ml.cohort.fhir import read_bundle  # with the time zones, which a plain patient needs none of

        patient = read_bundle(dict(bundle), timezone=timezone, prediction_time=prediction_time)
        known = {modality.name for modality in self.schema.modalities}
        omics = {name: values for name, values in patient.get("omics", {}).items() if name in known}
        return {**patient, "omics": omics, "assays": dict.fromkeys(omics, assay) if assay else {}}

    def infer(self, inputs: Arrays) -> Arrays:
        """The network's outputs for arrays that others have made.

        Raises
        ------
        InputError
            If no patient can give them, or the network's answer to them is not finite.
        """
        check_inputs(self._limits, inputs)
        outputs = self.run(inputs)
        for name, values in outputs.items():
            if not np.isfinite(values).all():
                raise InputError(f"inputs: expected values that give finite outputs, got {name!r} that is not")
        return outputs

    def run(self, inputs: Arrays) -> Arrays:
        """The network's outputs by name: a task, what its members say, or how the patient looks to the network."""
        used = {name: values for name, values in inputs.items() if name in self._input_names}
        return dict(zip(self._output_names, self._session.run(None, used), strict=True))

    def prove(self) -> None:
        """Raise BundleError unless the golden cases come out as exported (:func:`ican_ml.bundle.golden.prove`)."""
        prove(self._bundle, self.run)

    def _answer(
        self,
        patient: Mapping[str, Any],
        regimens: list[Regimen],
        outputs: Arrays,
        notes: PatientNotes,
        *,
        explain: bool,
    ) -> Answer:
        """Of one patient: outputs are [R, ...]."""
        predictions = {task.name: summarise(task, outputs[task.name]) for task in self.schema.tasks}
        if not all(np.isfinite(values).all() for values in predictions.values()):
            raise PatientError(
                "patient: expected values that give a finite answer, got some too extreme for this model"
            )
        headline = self.schema.tasks[0]
        sign = 1 if headline.kind == "regression" else -1
        order = np.argsort(sign * predictions[headline.name], kind="stable")
        doubts = {
            task.name: uncertainty(task, outputs[members_of(task)])
            for task in self.schema.tasks
            if members_of(task) in outputs
        }
        known = self._bundle.applicability
        return Answer(
            task=headline.name,
            ranked=tuple(self._ranked(regimens[i], int(i), outputs, predictions, doubts) for i in order),
            notes=notes,
            coverage={name: calibration.coverage for name, calibration in self.calibration.items()},
            applicability=known.judge(outputs[EMBEDDING], notes.record, notes.missing) if known is not None else None,
            drivers=self._drivers(patient, regimens[order[0]]) if explain else (),
        )

    def _ranked(
        self,
        regimen: Regimen,
        i: int,
        outputs: Arrays,
        predictions: Mapping[str, Any],
        doubts: Mapping[str, tuple[Float64, Float64]],
    ) -> Ranked:
        return Ranked(
            regimen=regimen,
            prediction={name: float(values[i]) for name, values in predictions.items()},
            unknown_drugs=tuple(d for d in regimen if d not in self.schema.drug_id and not d.startswith(INHIBITOR)),
            sets={name: each.answer_set(predictions[name][i]) for name, each in self.calibration.items()},
            interval={
                name: found
                for name, each in self.calibration.items()
                if (found := each.interval(float(predictions[name][i]))) is not None
            },
            uncertainty={
                name: {"aleatoric": float(aleatoric[i]), "epistemic": float(epistemic[i])}
                for name, (aleatoric, epistemic) in doubts.items()
            },
            event_free={
                task.name: tuple(event_free(outputs[task.name][i]).tolist())
                for task in self.schema.tasks
                if task.kind == "survival"
            },
        )

    def _drivers(self, patient: Mapping[str, Any], regimen: Regimen) -> tuple[Driver, ...]:
        task = self.schema.tasks[0]
        parts = list(variants(self.schema, patient))
        whole = [patient, *(part.patient for part in parts)]
        values: list[float] = []
        for start in range(0, len(whole), _VARIANTS_AT_ONCE):
            each = [self.inputs(one, [regimen])[0] for one in whole[start : start + _VARIANTS_AT_ONCE]]
            values += summarise(task, self.run(joined(each))[task.name])[:, 0].tolist()
        found = [
            Driver(kind=part.kind, name=part.name, modality=part.modality, effect=values[0] - value)
            for part, value in zip(parts, values[1:], strict=True)
        ]
        return tuple(sorted(found, key=lambda driver: -abs(driver.effect))[:_MOST_DRIVERS])

    def _checked(self, i: int, given: object) -> Regimen:
        if not isinstance(given, list | tuple) or not all(isinstance(drug, str) and drug for drug in given):
            raise PatientError(f"treatments[{i}]: expected a list of drug names, got {given!r:.200}")
        regimen = tuple(sorted(set(given)))
        if not regimen and self.schema.drugs:
            raise PatientError(f"treatments[{i}]: expected at least one drug, got none")
        for drug in regimen:
            if drug.startswith(INHIBITOR) and drug.removeprefix(INHIBITOR) not in self.schema.gene_id:
                raise PatientError(
                    f"treatments[{i}]: expected a gene that the model knows, got {drug!r:.80}; it is none of its "
                    f"{len(self.schema.genes)} genes"
                )
        return regimen


def _session(model: bytes, threads: int, device: Device) -> onnxruntime.InferenceSession:
    provider = _PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise ValueError(
            f"device: expected an onnxruntime with {provider}, got one with "
            f"{', '.join(onnxruntime.get_available_providers())}; install ican_ml[serve-gpu] beside no other"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # onnxruntime has no common class of errors
        raise BundleError(f"bundle: onnxruntime cannot load the network ({error!s:.200})") from None
    if session.get_providers()[0] != provider:
        raise ValueError(f"device: expected {provider}, got {session.get_providers()[0]}; see onnxruntime's own log")
    return session
