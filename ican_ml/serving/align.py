"""Another cohort's patients as a model's own inputs: every feature, assay, drug and covariate is found by its name.

In: a bundle's schema and the patients of any cohort (:mod:`ican_ml.inputs.assemble`). Out: the network's arrays, still
ragged. Where the cohort is the training cohort, they equal training's bit for bit. Elsewhere:

- a *feature* that only the model or only the cohort has is absent or left aside; the order of columns never matters.
  Features are matched by id, and by gene symbol in a modality whose ids the model does not know at all;
- a *modality* of another kind (counts, say, where the model knows binary calls) counts as not measured;
- an *assay* is what its own panel column measures, whatever its name. The network knows a sparse modality's assays by a
  number, which stands for a constant: the sum over its features of -mean x weight. An assay is given the number of the
  model's assay that covers most of it. What the cohort's assay measures beyond that is left aside. What the model's
  assay claims beyond the cohort's is stored at its training mean, which cancels its part of the constant: it counts as
  not measured. It is neither a token nor a known target state. Counts are shares of a total, so the total is made up
  for the share that the missing features usually have;
- a *drug* that the model does not know is scored by the targets and class that the cohort's treatments.parquet gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.cohort.cohort import Cohort
from ican_ml.cohort.omics import Modality
from ican_ml.encoding.csr import CSRBatch
from ican_ml.inputs.encode import EncodedPatients, Float32, Int64, OmicsRows, PatientStates, encode
from ican_ml.inputs.schema import InputSchema, ModalitySchema

_TARGET_SUM = 1e4
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Alignment:
    """How a cohort maps onto a model.

    Attributes
    ----------
    schema
        The model's, with targets and classes of drugs that only the cohort knows.
    cohort
        With those of its modalities that the model uses.
    columns
        By modality: position in the model of each of the cohort's features, -1 = none.
    unused
        The cohort's modalities that the model knows and cannot use, and why.
    """

    schema: InputSchema
    cohort: Cohort
    columns: Mapping[str, Int64]
    unused: Mapping[str, str]

    def assays(self, model: ModalitySchema) -> dict[str, dict[str, Any]]:
        """Each assay of the cohort: the model's assay that it is taken for (None: not used), and the features apart.

        ``filled`` are claimed by the model's assay and not measured, ``left_aside`` the other way round.
        """
        modality = self.cohort.modalities[model.name]
        if modality.explicit or model.explicit:
            return {}  # every value says for itself that it was measured
        names = sorted(modality.panels)
        measured = _measured(modality, self.columns[model.name], len(model.features))
        number, known = choose_panels(model, names, measured), model.measured()
        return {
            name: {
                "taken_for": list(model.panels)[number[i] - 1] if number[i] else None,
                "filled": int((known[number[i]] & ~measured[i]).sum()),
                "left_aside": int((measured[i] & ~known[number[i]]).sum()),
            }
            for i, name in enumerate(names)
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignedOmics:
    """One modality of N patients in the model's columns.

    Attributes
    ----------
    rows
        Values, and the number of each row's assay among those of ``measured`` (0 = none).
    measured
        bool [assays + 1, features]: what each assay measures of what the model reads.
    number
        int64 [assays + 1]: the model's number for each.
    """

    rows: OmicsRows
    measured: Bool
    number: Int64


def align(schema: InputSchema, cohort: Cohort) -> Alignment:
    """Match a cohort's modalities and drugs with the model's."""
    columns: dict[str, Int64] = {}
    unused: dict[str, str] = {}
    for model in schema.modalities:
        modality = cohort.modalities.get(model.name)
        if modality is None:
            continue
        found = _match(model, modality)
        if modality.kind != model.kind:
            unused[model.name] = f"{modality.kind}, the model knows {model.kind}"
        elif (found < 0).all():
            unused[model.name] = "no feature in common with the model"
        else:
            columns[model.name] = found
    new = {drug for drug in cohort.targets if drug not in schema.drug_id}
    targets = {drug: genes for drug, genes in sorted(cohort.targets.items()) if drug in new and genes}
    class_of = {drug: code for drug, code in sorted(cohort.classes.items()) if drug in new}
    return Alignment(
        schema=replace(schema, targets=targets | dict(schema.targets), class_of=class_of | dict(schema.class_of)),
        cohort=replace(cohort, modalities={name: cohort.modalities[name] for name in sorted(columns)}),
        columns=columns,
        unused=unused,
    )


def align_omics(alignment: Alignment, states: PatientStates) -> dict[str, AlignedOmics]:
    """The patients' omics in the model's columns; modalities that the cohort lacks are left out."""
    return {
        model.name: _align_rows(
            model, alignment.cohort.modalities[model.name], alignment.columns[model.name], states.omics[model.name]
        )
        for model in alignment.schema.modalities
        if model.name in alignment.columns
    }


def encode_aligned(alignment: Alignment, states: PatientStates, omics: Mapping[str, AlignedOmics]) -> EncodedPatients:
    """The network's inputs for patients of the cohort."""
    schema = alignment.schema
    own = [
        replace(model, panels=_panels(omics[model.name].measured)) if model.name in omics else model
        for model in schema.modalities
    ]
    rows = {name: aligned.rows for name, aligned in omics.items()}
    encoded = encode(replace(schema, modalities=tuple(own)), replace(states, omics=rows), backend="reference")
    modalities = dict(encoded.modalities)
    for model in schema.modalities:
        if model.name in omics:
            found, aligned = modalities[model.name], omics[model.name]
            matrix, total = _fill(model, aligned, alignment.columns[model.name], found.total)
            panel = aligned.number[aligned.rows.panel]
            modalities[model.name] = replace(found, matrix=matrix, total=total, panel=panel)
    return replace(encoded, modalities=modalities)


def choose_panels(model: ModalitySchema, names: list[str], measured: Bool) -> Int64:
    """int64 [assays]: number of the model's assay that covers most of each, claims least beyond it, or has its name."""
    known = model.measured()[1:].astype(np.int64)
    covered = measured.astype(np.int64) @ known.T
    beyond = known.sum(axis=1) - covered
    same = np.array([[name == other for other in model.panels] for name in names], bool).reshape(covered.shape)
    best = np.lexsort((~same, beyond, -covered), axis=1)[:, 0]
    return np.where(measured.any(axis=1), best + 1, 0).astype(np.int64)


def dense(matrix: CSRBatch) -> tuple[Float32, Bool]:
    """float32 [rows, features], 0 where nothing is stored, and what is stored."""
    values = np.zeros((matrix.n_rows, matrix.n_features), np.float32)
    stored = np.zeros(values.shape, bool)
    row = matrix.row_ids()
    values[row, matrix.indices], stored[row, matrix.indices] = matrix.values, True
    return values, stored


def _match(model: ModalitySchema, modality: Modality) -> Int64:
    """int64 [features of the cohort]: position in the model, -1 = none; no position twice."""
    for ours, theirs in ((model.features, modality.features), (model.genes, modality.genes)):
        position = {name: i for i, name in reversed(list(enumerate(ours)))}
        found = np.array([position.get(name, -1) for name in theirs], np.int64)
        _, first = np.unique(found, return_index=True)
        once = np.isin(np.arange(len(found)), first)
        found = np.where(once, found, -1)
        if (found >= 0).any():
            break
    return found


def _align_rows(model: ModalitySchema, modality: Modality, columns: Int64, rows: OmicsRows) -> AlignedOmics:
    n_features = len(model.features)
    names, none = sorted(modality.panels), np.zeros((1, n_features), bool)
    measured = np.concatenate([none, _measured(modality, columns, n_features)])
    matrix, panel = _in_columns(rows.matrix, columns, n_features), rows.panel
    if modality.explicit and not model.explicit:
        patterns, panel = np.unique(dense(matrix)[1], axis=0, return_inverse=True)
        measured = np.concatenate([none, patterns])
        panel = np.where(rows.panel > 0, panel.reshape(-1) + 1, 0)
        names = [""] * len(patterns)
        matrix = _chosen(matrix, matrix.values != 0)
    number = np.append(0, choose_panels(model, names, measured[1:]))
    if model.explicit and not modality.explicit:
        matrix = CSRBatch.from_dense(np.where(measured[panel], dense(matrix)[0], np.nan), keep_zeros=True)
    if not model.explicit:
        measured = measured & model.measured()[number]
        matrix = _chosen(matrix, measured[panel[matrix.row_ids()], matrix.indices])
    panel = np.where(number[panel] > 0, panel, 0)
    matrix = _chosen(matrix, panel[matrix.row_ids()] > 0)
    return AlignedOmics(rows=OmicsRows(matrix=matrix, panel=panel), measured=measured, number=number)


def _measured(modality: Modality, columns: Int64, n_features: int) -> Bool:
    """bool [assays, features of the model]: what each of the cohort's assays measures, in alphabetical order."""
    kept = columns >= 0
    measured = np.zeros((len(modality.panels), n_features), bool)
    for i, name in enumerate(sorted(modality.panels)):
        measured[i, columns[kept]] = modality.panels[name][kept]
    return measured


def _fill(model: ModalitySchema, aligned: AlignedOmics, columns: Int64, total: Float32) -> tuple[CSRBatch, Float32]:
    """Stores features that the model's assay claims and the cohort's lacks at their mean; and makes up the totals."""
    matrix, panel = aligned.rows.matrix, aligned.rows.panel
    if model.explicit:
        claimed = np.broadcast_to((panel > 0)[:, None], (len(panel), len(model.features)))
        missing = claimed & ~np.isin(np.arange(len(model.features)), columns)
    else:
        claimed = model.measured()[aligned.number][panel]
        missing = claimed & ~aligned.measured[panel]
    if not missing.any():
        return matrix, total
    typical = model.mean.astype(np.float64)
    filling = np.broadcast_to(typical, missing.shape)
    if model.kind == "count":
        typical = np.expm1(typical)
        share = (claimed & ~missing) @ typical / np.maximum(claimed @ typical, 1e-300)
        made_up = np.where(total > 0, total, 1.0) / np.maximum(share, 1e-6)
        total = np.where(missing.any(axis=1), made_up, total).astype(np.float32)
        filling = typical * (total[:, None].astype(np.float64) / _TARGET_SUM)
    if model.explicit:
        return matrix, total
    values, stored = dense(matrix)
    return CSRBatch.from_dense(np.where(missing, filling, np.where(stored, values, np.nan)), keep_zeros=True), total


def _panels(measured: Bool) -> dict[str, tuple[int, ...] | None]:
    return {str(i): None if mask.all() else tuple(np.flatnonzero(mask).tolist()) for i, mask in enumerate(measured[1:])}


def _in_columns(matrix: CSRBatch, columns: Int64, n_features: int) -> CSRBatch:
    """The same rows with the cohort's features at the model's positions."""
    kept = _chosen(matrix, columns[matrix.indices] >= 0)
    indices = columns[kept.indices].astype(np.int32)
    return CSRBatch(kept.indptr, indices, kept.values, n_features).sorted()


def _chosen(matrix: CSRBatch, keep: Bool) -> CSRBatch:
    """Some entries of every row."""
    if keep.all():
        return matrix
    before = np.append(0, np.cumsum(keep)).astype(np.int64)
    return CSRBatch(before[matrix.indptr], matrix.indices[keep], matrix.values[keep], matrix.n_features)
