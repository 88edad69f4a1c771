"""Patients in plain arrays -> the arrays of the network. Torch-free; training and serving run exactly this code.

In: :class:`PatientStates`, ragged rows of one patient at one prediction time each, with the regimens to ask about.
Out: :class:`EncodedPatients`, still ragged, from which :func:`collate` pads any choice of rows into named arrays:

=========================================  =======  ==========  =================================================
``<m>_indptr``                             int64    B + 1       raw values of every stored feature of modality m
``<m>_indices``                            int64    nnz
``<m>_values``                             float32  nnz
``<m>_total``                              float32  B           sum of the row: the size factor of counts
``<m>_panel``                              int64    B           assay number, 0 = not measured
``<m>_tokens``                             int64    B, K        the most telling features + 1, 0 = padding
``<m>_token_values``                       float32  B, K        their raw values
``event_code``                             int64    B, T        vocabulary id, 0 = padding
``event_value``, ``event_has_value``       float32  B, T        normalised by (code, unit); 1 where there is a value
``event_gap``, ``event_age``               float32  B, T        days before the prediction (-1 = static); age, 0 unknown
``summary``                                float32  B, S        standardised record aggregates and covariates
``treatment_drug``, ``treatment_class``    int64    B, R, D     0 = padding, 1 = unknown
``treatment_gene``                         int64    B, R, G     targets; 0 = padding, 1 = targets unknown
``treatment_state``                        float32  B, R, G, M  raw value of each target gene in each modality
``treatment_state_known``                  float32  B, R, G, M  1 where that was measured
=========================================  =======  ==========  =================================================

Values stay raw (logarithm, centring and clipping happen in the network), so that every backend agrees to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ican_ml.encoding.backends import Backend
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.lookup import row_sums
from ican_ml.encoding.pad_ragged import pad_ragged
from ican_ml.encoding.rank_tokens import row_tokens
from ican_ml.inputs.regimens import EncodedRegimens, Regimen, collate_regimens, encode_regimens
from ican_ml.inputs.schema import InputSchema, ModalitySchema
from ican_ml.records.aggregates import aggregate
from ican_ml.records.recent import recent
from ican_ml.records.vocabulary import Events, Record

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[np.generic]]

DAYS_PER_YEAR = np.float32(365.25)
_SUMMARY_LIMIT = np.float32(10.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class OmicsRows:
    """One modality of N patients: raw values, features ascending, and each row's assay number (0 = not measured)."""

    matrix: CSRBatch
    panel: Int64


@dataclass(frozen=True, kw_only=True, slots=True)
class PatientStates:
    """N patients, each at one prediction time, nothing later than it.

    Attributes
    ----------
    omics
        By modality name; a modality of the schema that is missing here counts as not measured.
    events
        Record up to the prediction time; ``None`` = no records.
    covariates
        Column name to N values; ``None`` within = unknown.
    regimens
        N lists of regimens. A regimen is a tuple of drug names, ``()`` = no treatment named; ``inhibitor:<gene>``
        stands for a drug that is nothing but an inhibitor of that gene.
    """

    omics: Mapping[str, OmicsRows]
    events: Events | None
    covariates: Mapping[str, Sequence[object]]
    regimens: Sequence[Sequence[Regimen]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Modality:
    matrix: CSRBatch
    panel: Int64
    total: Float32
    tokens: Int64
    token_values: Float32


class Loader(Protocol):
    """Gives padded events of rows, as they are kept here or, in training, from a store.

    The latter is `ican_ml.records.recent.RecordLoader`, which needs Numba, where serving has none.
    """

    def batch(self, rows: Int64) -> dict[str, npt.NDArray[Any]]: ...

    def lengths(self) -> Int64:
        """How many events each row has, at most."""
        ...


class StoredRecord(Loader, Protocol):
    """A loader that also gives the whole record of all rows, some rows at a time."""

    @property
    def record(self) -> Record: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Events:
    """Events that are kept, ragged; and the ages of all rows."""

    offsets: Int64
    code: Int64
    value: Float32
    has_value: Float32
    gap: Float32
    age: Float32

    def batch(self, rows: Int64) -> dict[str, npt.NDArray[Any]]:
        """As a `Loader` gives them."""
        start, length = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.append(0, np.cumsum(length))
        source = np.repeat(start - offsets[:-1], length) + np.arange(offsets[-1])
        columns: dict[str, npt.NDArray[Any]] = {
            "code": self.code,
            "value": self.value,
            "has_value": self.has_value,
            "gap": self.gap,
        }
        flat = [column[source] for column in columns.values()]
        padded, _ = pad_ragged(offsets, flat, max(1, int(length.max(initial=0))), backend="reference")
        batch: dict[str, npt.NDArray[Any]] = dict(zip(columns, padded, strict=True))
        age = self.age[rows][:, None] - np.maximum(batch["gap"], 0) / DAYS_PER_YEAR
        known = (batch["code"] > 0) & (self.age[rows] > 0)[:, None]
        return batch | {"age": np.where(known, age, np.float32(0)).astype(np.float32)}

    def lengths(self) -> Int64:
        """As a `Loader` gives them."""
        return np.diff(self.offsets)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPatients:
    """What :func:`encode` returns. ``summary_raw`` keeps NaN for missing: the baselines' view of the same columns."""

    modalities: Mapping[str, _Modality]
    events: Loader
    summary_raw: Float32
    summary: Float32
    regimens: EncodedRegimens

    @property
    def n_rows(self) -> int:
        """Number of patients."""
        return len(self.summary)

    def n_tokens(self) -> Int64:
        """int64 [N]: features and events of each patient that become tokens, at most."""
        found = self.events.lengths()
        for modality in self.modalities.values():
            found = found + (modality.tokens > 0).sum(1)
        return found


def encode(
    schema: InputSchema, states: PatientStates, *, backend: Backend = "auto", loader: StoredRecord | None = None
) -> EncodedPatients:
    """Turn patients into network inputs under a fitted schema. No Python loop over patients' values.

    Parameters
    ----------
    loader
        Where events come from in place of ``states``, whose own are then not looked at.
    """
    n_rows = len(states.regimens)
    record = loader.record if loader is not None else states.events
    modalities = {m.name: _encode_modality(m, states.omics.get(m.name), n_rows, backend) for m in schema.modalities}
    summary_raw = encode_summary(schema, record, states.covariates, n_rows)
    return EncodedPatients(
        modalities=modalities,
        events=loader if loader is not None else _keep_events(schema, states.events, n_rows),
        summary_raw=summary_raw,
        summary=standardise_summary(summary_raw, schema.summary_mean, schema.summary_inverse_sd),
        regimens=encode_regimens(
            schema, states.regimens, {name: (m.matrix, m.panel) for name, m in modalities.items()}
        ),
    )


def encode_summary(
    schema: InputSchema, record: Record | None, covariates: Mapping[str, Sequence[object]], n_rows: int
) -> Float32:
    """The ``summary_raw`` of :func:`encode` alone: float32 [N, S], NaN = missing."""
    width = len(schema.aggregates.names) if schema.aggregates else 0
    columns = _encode_covariates(schema, covariates, n_rows)
    summary = np.full((n_rows, width + columns.shape[1]), np.nan, np.float32)
    summary[:, width:] = columns
    if schema.vocabulary is None or schema.aggregates is None or record is None:
        return summary
    start = 0
    for events in record.pieces():
        ids, values, has_value = schema.vocabulary.encode(events)
        columns = aggregate(schema.aggregates, events.offsets, ids, values, has_value, events.gap, events.age)
        summary[start : start + events.n_rows, :width] = columns
        start += events.n_rows
    return summary


def standardise_summary(raw: Float32, mean: Float32, inverse_sd: Float32) -> Float32:
    """Centre, scale and clip to +-10; a missing value becomes the training mean, 0."""
    with np.errstate(over="ignore"):  # what overflows is clipped
        scaled = np.clip((raw - mean) * inverse_sd, -_SUMMARY_LIMIT, _SUMMARY_LIMIT)
    return np.where(np.isnan(scaled), np.float32(0), scaled)


def _encode_modality(schema: ModalitySchema, rows: OmicsRows | None, n_rows: int, backend: Backend) -> _Modality:
    if rows is None:
        empty = CSRBatch(
            np.zeros(n_rows + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), len(schema.features)
        )
        rows = OmicsRows(matrix=empty, panel=np.zeros(n_rows, np.int64))
    tokens, token_values, _ = row_tokens(
        rows.matrix,
        np.arange(n_rows),
        schema.rank_scale,
        schema.max_tokens,
        by_magnitude=schema.kind == "continuous",
        backend=backend,
    )
    return _Modality(
        matrix=rows.matrix,
        panel=rows.panel,
        total=row_sums(rows.matrix, backend="reference"),
        tokens=tokens.astype(np.int64) + 1,
        token_values=token_values,
    )


def _keep_events(schema: InputSchema, events: Events | None, n_rows: int) -> _Events:
    if schema.vocabulary is None or events is None:
        none = np.empty(0, np.float32)
        return _Events(
            offsets=np.zeros(n_rows + 1, np.int64),
            code=np.empty(0, np.int64),
            value=none,
            has_value=none,
            gap=none,
            age=np.zeros(n_rows, np.float32),
        )
    ids, values, has_value = schema.vocabulary.encode(events)
    keep = recent(events.offsets, ids, events.gap < 0, schema.max_events, schema.max_per_code)
    kept_before = np.concatenate([[0], np.cumsum(keep)])
    return _Events(
        offsets=kept_before[events.offsets].astype(np.int64),
        code=ids[keep].astype(np.int64),
        value=values[keep],
        has_value=has_value[keep].astype(np.float32),
        gap=events.gap[keep],
        age=np.nan_to_num(events.age, nan=0.0).astype(np.float32),
    )


def _encode_covariates(schema: InputSchema, values: Mapping[str, Sequence[object]], n_rows: int) -> Float32:
    columns: list[Float32] = []
    for covariate in schema.covariates:
        column = values.get(covariate.name, [None] * n_rows)
        if covariate.categories is None:
            columns.append(np.array([np.nan if v is None else float(str(v)) for v in column], np.float32)[:, None])
        else:
            text = np.array(["" if v is None else str(v) for v in column], dtype=object)
            columns.append((text[:, None] == np.array(covariate.categories, dtype=object)[None]).astype(np.float32))
    return np.concatenate(columns, axis=1) if columns else np.empty((n_rows, 0), np.float32)


def collate(encoded: EncodedPatients, rows: Int64) -> Arrays:
    """Pad the chosen patients into the arrays of the module docstring; every padded axis is at least 1 long."""
    batch: Arrays = {}
    for name, modality in encoded.modalities.items():
        matrix = modality.matrix.take(rows)
        tokens = modality.tokens[rows]
        width = max(1, int((tokens > 0).sum(axis=1).max(initial=0)))
        batch[f"{name}_indptr"] = matrix.indptr
        batch[f"{name}_indices"] = matrix.indices.astype(np.int64)
        batch[f"{name}_values"] = matrix.values
        batch[f"{name}_total"] = modality.total[rows]
        batch[f"{name}_panel"] = modality.panel[rows]
        batch[f"{name}_tokens"] = tokens[:, :width]
        batch[f"{name}_token_values"] = modality.token_values[rows, :width]
    batch |= {f"event_{name}": column for name, column in encoded.events.batch(rows).items()}
    batch["summary"] = encoded.summary.take(rows, axis=0)
    return batch | collate_regimens(encoded.regimens, rows)


def joined(patients: Sequence[Arrays]) -> Arrays:
    """The arrays of several patients as those of one batch: padded with zeros, which is padding everywhere."""
    found: Arrays = {}
    for name in patients[0] if patients else ():
        parts = [patient[name] for patient in patients]
        if name.endswith("_indptr"):
            lengths = np.concatenate([np.diff(part.astype(np.int64)) for part in parts])
            found[name] = np.append(0, np.cumsum(lengths)).astype(np.int64)
            continue
        widest = np.max([part.shape[1:] for part in parts], axis=0) if parts[0].ndim > 1 else []
        padding = [
            [(0, 0), *((0, int(w) - size) for w, size in zip(widest, part.shape[1:], strict=False))] for part in parts
        ]
        found[name] = np.concatenate([np.pad(part, pad) for part, pad in zip(parts, padding, strict=True)])
    return found
