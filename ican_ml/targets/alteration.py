"""In-silico alteration: how would the prediction change if a gene of the tumour were silenced, lost or restored?

The idea of in-silico perturbation (Theodoris et al. 2023, doi:10.1038/s41586-023-06139-9), on the values that were
measured:

    silenced    nothing of the gene is left: what a sparse modality stores of it goes; where every value is stored, it
                falls to two standard deviations below the mean
    lost        silenced, and deleted: a copy number of -2
    restored    unaltered, at its own expression: what is stored of it in modalities of alterations (mutations, copy
                number) goes

A patient whose values stay the same is not asked again, and changes by exactly 0.

Shapes: N patients, G genes, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ican_ml.encoding.csr import CSRBatch
from ican_ml.inputs.encode import Arrays, OmicsRows, PatientStates, collate, encode
from ican_ml.inputs.regimens import Regimen
from ican_ml.inputs.schema import InputSchema, ModalitySchema
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.targets.asking import benefit

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Change = Literal["silenced", "lost", "restored"]
CHANGES: tuple[Change, ...] = get_args(Change)
_BATCH = 256
_BELOW = 2.0
_DELETED = -2.0  # as GISTIC writes a deep deletion (Mermel et al. 2011, doi:10.1186/gb-2011-12-4-r41)


def alter(
    network: PatientTransformer,
    schema: InputSchema,
    arrays: Arrays,
    omics: Mapping[str, OmicsRows],
    regimens: Sequence[Regimen],
    genes: Sequence[str],
    *,
    task: int = 0,
) -> dict[str, Float32]:
    """By change, float32 [N, G]: by how much the predicted benefit of each patient's regimen changes.

    Parameters
    ----------
    arrays
        Network inputs of N patients, each asked about their one regimen.
    omics
        Their raw values under the schema's features.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    network.eval()
    before = benefit(network, arrays, task)[:, 0]
    found: dict[str, Float32] = {change: np.zeros((len(before), len(genes)), np.float32) for change in CHANGES}
    for g, gene in enumerate(tqdm(genes, disable=None, unit="gene", desc="alteration")):
        for change in CHANGES:
            altered = {m.name: altered_rows(m, omics[m.name], gene, change) for m in schema.modalities}
            rows = np.flatnonzero(np.any([_differ(omics[name], each) for name, each in altered.items()], axis=0))
            for start in range(0, len(rows), _BATCH):
                some = rows[start : start + _BATCH]
                after = benefit(network, _with_omics(schema, arrays, altered, regimens, some), task)[:, 0]
                found[change][some, g] = after - before[some]
    return found


def altered_rows(modality: ModalitySchema, rows: OmicsRows, gene: str, change: Change) -> OmicsRows:
    """A modality's rows after a change of one gene; those where it was not measured stay as they are."""
    features = np.flatnonzero(np.array(modality.genes) == gene)
    alterations = modality.kind == "binary" or (modality.kind == "continuous" and not modality.explicit)
    if not len(features) or (change == "restored" and not alterations):
        return rows
    batch, row = rows.matrix, rows.matrix.row_ids()
    touched = np.isin(batch.indices, features)
    if modality.explicit:
        low = modality.mean - _BELOW / np.where(modality.inverse_sd > 0, modality.inverse_sd, np.inf)
        values = np.where(touched, np.minimum(batch.values, low[batch.indices]), batch.values)
        return OmicsRows(matrix=batch.with_values(values.astype(np.float32)), panel=rows.panel)
    deleted = change == "lost" and modality.kind == "continuous"
    added_row, added = np.nonzero(modality.measured()[rows.panel][:, features] & deleted)
    all_rows = np.concatenate([row[~touched], added_row])
    indices = np.concatenate([batch.indices[~touched], features[added].astype(batch.indices.dtype)])
    values = np.concatenate([batch.values[~touched], np.full(len(added), _DELETED, np.float32)])
    order = np.lexsort((indices, all_rows))
    indptr = np.append(0, np.cumsum(np.bincount(all_rows, minlength=batch.n_rows))).astype(np.int64)
    return OmicsRows(matrix=CSRBatch(indptr, indices[order], values[order], batch.n_features), panel=rows.panel)


def _differ(first: OmicsRows, second: OmicsRows) -> npt.NDArray[np.bool_]:
    """[N]: whose values are not the same."""
    a, b = first.matrix, second.matrix
    changed: npt.NDArray[np.bool_] = np.diff(a.indptr) != np.diff(b.indptr)
    same = ~changed
    pick_a, pick_b = same[a.row_ids()], same[b.row_ids()]
    unequal = (a.indices[pick_a] != b.indices[pick_b]) | (a.values[pick_a] != b.values[pick_b])
    changed[a.row_ids()[pick_a][unequal]] = True
    return changed


def _with_omics(
    schema: InputSchema, arrays: Arrays, omics: Mapping[str, OmicsRows], regimens: Sequence[Regimen], rows: Int64
) -> Arrays:
    states = PatientStates(
        omics={name: OmicsRows(matrix=each.matrix.take(rows), panel=each.panel[rows]) for name, each in omics.items()},
        events=None,
        covariates={},
        regimens=[[regimens[i]] for i in rows.tolist()],
    )
    altered = collate(encode(schema, states), np.arange(len(rows)))
    names = tuple(f"{m.name}_" for m in schema.modalities)
    kept = {name: values[rows] for name, values in arrays.items() if not name.startswith((*names, "treatment_"))}
    return {name: values for name, values in altered.items() if name.startswith((*names, "treatment_"))} | kept
