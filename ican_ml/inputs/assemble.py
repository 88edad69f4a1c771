"""Rows of a cohort's episodes -> patients at their prediction times, with what was known then and nothing later.

Episodes of one subject that share prediction time and covariates are one patient state asked about several regimens: a
cell line tested with 170 drugs is encoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ican_ml.cohort.asof import find_subjects
from ican_ml.cohort.cohort import Cohort
from ican_ml.cohort.omics import Modality, latest_samples
from ican_ml.inputs.encode import Int64, OmicsRows, PatientStates
from ican_ml.inputs.regimens import Regimen
from ican_ml.records.store import Histories, RecordStore, histories

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortStates:
    """Patients, and where each episode is among them.

    Attributes
    ----------
    patients
        N patient states.
    subject_id, prediction_time
        int64 [N], datetime64[us] [N].
    patient, slot
        int64 [episodes]: row of ``patients``, and position of the episode's regimen among that patient's regimens.
    histories
        Where the patients' events lie in the store.
    """

    patients: PatientStates
    subject_id: Int64
    prediction_time: npt.NDArray[np.datetime64]
    patient: Int64
    slot: Int64
    histories: Histories | None = None


def assemble(
    cohort: Cohort,
    store: RecordStore | None,
    episodes: pl.DataFrame,
    covariates: Sequence[str],
    *,
    lay_out: bool = True,
) -> CohortStates:
    """Gather the patients of ``episodes``: latest samples and events at or before each prediction time.

    ``lay_out``: whether the patients hold their events, or only ``histories`` says where they lie.
    """
    missing = [name for name in covariates if name not in episodes.columns]
    if missing:
        raise ValueError(
            f"inputs.covariates: expected columns of episodes.parquet, got {missing}; it has {sorted(episodes.columns)}"
        )
    number: dict[tuple[object, ...], int] = {}
    first: list[int] = []
    regimens: list[list[Regimen]] = []
    patient = np.empty(len(episodes), np.int64)
    slot = np.empty(len(episodes), np.int64)
    identity = episodes.select("subject_id", "prediction_time", *covariates).rows()
    treatments: list[list[str] | None] = episodes["treatment"].to_list()
    for row, (key, drugs) in enumerate(zip(identity, treatments, strict=True)):
        state = number.setdefault(key, len(number))
        if state == len(first):
            first.append(row)
            regimens.append([])
        patient[row], slot[row] = state, len(regimens[state])
        regimens[state].append(tuple(drugs or ()))
    subject_id = episodes["subject_id"].to_numpy()[first].astype(np.int64)
    prediction_time = episodes["prediction_time"].to_numpy()[first].astype("datetime64[us]")
    known = histories(store, subject_id, prediction_time) if store is not None else None
    return CohortStates(
        patients=PatientStates(
            omics={
                name: _omics_rows(modality, subject_id, prediction_time) for name, modality in cohort.modalities.items()
            },
            events=known.events() if known is not None and lay_out else None,
            covariates={name: episodes[name][first].to_list() for name in covariates},
            regimens=regimens,
        ),
        subject_id=subject_id,
        prediction_time=prediction_time,
        patient=patient,
        slot=slot,
        histories=known,
    )


def _omics_rows(modality: Modality, subject_id: Int64, prediction_time: npt.NDArray[np.datetime64]) -> OmicsRows:
    """Rows of the latest samples; a patient without one gets an empty row and assay number 0."""
    sample = latest_samples(modality, subject_id, prediction_time)
    present = sample >= 0
    number = {name: i for i, name in enumerate(sorted(modality.panels), start=1)}
    assay = np.array([number[str(name)] for name in modality.panel], np.int64)
    panel = np.zeros(len(sample), np.int64)
    panel[present] = assay[sample[present]]
    return OmicsRows(matrix=modality.matrix.take(sample), panel=panel)


def as_dictionary(cohort: Cohort, store: RecordStore | None, states: CohortStates, row: int) -> dict[str, Any]:
    """One patient state as the plain dictionary that :mod:`ican_ml.inputs.patient` reads: the cohort's own values."""
    patients = states.patients
    document: dict[str, Any] = {"omics": {}, "assays": {}}
    for name, rows in patients.omics.items():
        if not rows.panel[row]:
            continue
        modality = cohort.modalities[name]
        one = rows.matrix.take(np.array([row]))
        document["omics"][name] = {
            modality.features[i]: float(value) for i, value in zip(one.indices, one.values, strict=True)
        }
        document["assays"][name] = sorted(modality.panels)[int(rows.panel[row]) - 1]
    covariates = {name: values[row] for name, values in patients.covariates.items()}
    document["covariates"] = {n: None if v != v else v for n, v in covariates.items()}  # a number may be NaN
    if not np.isnat(states.prediction_time[row]):
        document["prediction_time"] = str(states.prediction_time[row])
    if store is not None:
        document |= record_as_dictionary(store, int(states.subject_id[row]), states.prediction_time[row])
    return document


def record_as_dictionary(store: RecordStore, subject_id: int, prediction_time: np.datetime64) -> dict[str, Any]:
    """``birth_time`` and ``events`` of one subject up to a time (all of them where it is NaT)."""
    (position,), (found,) = find_subjects(store.subject_id, np.array([subject_id], np.int64))
    if not found:
        return {}
    document: dict[str, Any] = {"events": []}
    if not np.isnat(store.birth[position]):
        document["birth_time"] = str(store.birth[position])
    for i in range(int(store.offsets[position]), int(store.offsets[position + 1])):
        time = store.time[i]
        if not np.isnat(prediction_time) and time > prediction_time:
            continue
        event: dict[str, Any] = {"code": store.codes[store.code[i]]}
        if not np.isnat(time):
            event["time"] = str(time)
        if not np.isnan(store.value[i]):
            event["value"] = float(store.value[i])
        if store.unit[i]:
            event["unit"] = store.units[store.unit[i]]
        document["events"].append(event)
    return document
