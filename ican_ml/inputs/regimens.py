"""Regimens -> the treatment arrays of the network: identities, classes, target genes, and the patient's state at them.

In: lists of regimens, and each modality's raw values. Out: :class:`EncodedRegimens`, each distinct regimen once, and by
:func:`collate_regimens` the ``treatment_*`` arrays that :mod:`ican_ml.inputs.encode` lists. A regimen is a set: neither
the order of its drugs nor what else is asked changes its arrays, padding apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.lookup import lookup
from ican_ml.inputs.schema import FIRST_KNOWN, PADDING, UNKNOWN, InputSchema

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Regimen = tuple[str, ...]
Measured = tuple[CSRBatch, Int64]

INHIBITOR = "inhibitor:"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedRegimens:
    """Q distinct regimens, and which of them each of N patients is asked about.

    Attributes
    ----------
    drug, drug_class, gene
        int64 [Q, D], [Q, D], [Q, G], 0 = padding.
    state_column
        int64 [Q, G]: position of each gene on the second axis of ``state``.
    of_row
        int64 [N, R]: regimen of each slot, -1 = none.
    state, state_known
        float32 [N, genes, M]: raw value of each gene in each modality, and whether it was measured.
    """

    drug: Int64
    drug_class: Int64
    gene: Int64
    state_column: Int64
    of_row: Int64
    state: Float32
    state_known: Float32


def drug_ids(schema: InputSchema, drug: str) -> tuple[int, int, list[int]]:
    """Identity, class and target genes of a drug as the network numbers them (see :mod:`ican_ml.inputs.schema`)."""
    if drug.startswith(INHIBITOR):
        return PADDING, PADDING, [schema.gene_id.get(drug.removeprefix(INHIBITOR), UNKNOWN)]
    genes = [schema.gene_id[gene] for gene in schema.targets.get(drug, ()) if gene in schema.gene_id]
    drug_class = schema.class_id.get(schema.class_of.get(drug, ""), UNKNOWN)
    return schema.drug_id.get(drug, UNKNOWN), drug_class, genes or [UNKNOWN]


def encode_regimens(
    schema: InputSchema, regimens: Sequence[Sequence[Regimen]], modalities: Mapping[str, Measured]
) -> EncodedRegimens:
    """Number the regimens; ``modalities`` gives raw values [N, features] and assay numbers [N] by name."""
    number: dict[Regimen, int] = {}
    asked = [[number.setdefault(tuple(sorted(set(r))), len(number)) for r in row] for row in regimens]
    of_row = np.full((len(asked), max(map(len, asked), default=0)), -1, np.int64)
    for row, numbers in enumerate(asked):
        of_row[row, : len(numbers)] = numbers
    parts = [[drug_ids(schema, drug) for drug in regimen] for regimen in number]
    gene = _padded([sorted({g for _, _, genes in drugs for g in genes}) for drugs in parts])
    state_genes, state_column = np.unique(gene, return_inverse=True)
    state, state_known = _target_state(schema, modalities, state_genes, len(asked))
    return EncodedRegimens(
        drug=_padded([[drug for drug, _, _ in drugs if drug] for drugs in parts]),
        drug_class=_padded([[drug_class for _, drug_class, _ in drugs if drug_class] for drugs in parts]),
        gene=gene,
        state_column=state_column.reshape(gene.shape),
        of_row=of_row,
        state=state,
        state_known=state_known,
    )


def collate_regimens(regimens: EncodedRegimens, rows: Int64) -> dict[str, npt.NDArray[np.generic]]:
    """Pad the regimens of the chosen patients; every padded axis is at least 1 long."""
    asked = regimens.of_row.take(rows, axis=0)
    asked = asked[:, : max(1, int((asked >= 0).sum(axis=1).max(initial=0)))]
    present = asked >= 0
    drug = regimens.drug[asked] * present[..., None]
    drug_class = regimens.drug_class[asked] * present[..., None]
    gene = regimens.gene[asked] * present[..., None]
    drugs = max(1, int((drug > 0).sum(axis=-1).max(initial=0)))
    genes = max(1, int((gene > 0).sum(axis=-1).max(initial=0)))
    column = regimens.state_column[asked][..., :genes]
    row = rows[:, None, None]
    padding = (gene[..., :genes] > 0)[..., None]
    return {
        "treatment_drug": drug[..., :drugs],
        "treatment_class": drug_class[..., :drugs],
        "treatment_gene": gene[..., :genes],
        "treatment_state": regimens.state[row, column] * padding,
        "treatment_state_known": regimens.state_known[row, column] * padding,
    }


def _target_state(
    schema: InputSchema, modalities: Mapping[str, Measured], genes: Int64, n_rows: int
) -> tuple[Float32, Float32]:
    """float32 [rows, genes, modalities] twice: raw value of each gene, and whether it was measured."""
    state = np.zeros((n_rows, len(genes), len(schema.modalities)), np.float32)
    known = np.zeros_like(state)
    for m, modality in enumerate(schema.modalities):
        matrix, panel = modalities[modality.name]
        feature = schema.feature_of_gene[modality.name][genes]
        state[:, :, m], stored = lookup(matrix, feature, backend="reference")
        measured = stored if modality.explicit else modality.measured()[panel[:, None], feature]
        known[:, :, m] = measured & (feature >= 0) & (genes >= FIRST_KNOWN)
    return state * known, known


def _padded(rows: Sequence[Sequence[int]]) -> Int64:
    out = np.zeros((len(rows), max(1, max(map(len, rows), default=1))), np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
