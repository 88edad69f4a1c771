"""The baselines' view of encoded patients: exactly what the network sees, omics sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ican_ml.encoding.normalize_log1p import normalize_log1p
from ican_ml.evaluation.design import Design
from ican_ml.evaluation.omics_block import OmicsBlock
from ican_ml.inputs.assemble import CohortStates
from ican_ml.inputs.encode import EncodedPatients
from ican_ml.inputs.schema import InputSchema, ModalitySchema

if TYPE_CHECKING:
    import polars as pl


def baseline_design(
    schema: InputSchema, encoded: EncodedPatients, states: CohortStates, episodes: pl.DataFrame
) -> Design:
    """Omics blocks by patient; regimen indicators, raw summary and indication by episode."""
    drug = encoded.regimens.drug[encoded.regimens.of_row[states.patient, states.slot]]
    regimen = np.zeros((len(drug), len(schema.drug_id) + 2), np.float32)
    regimen[np.arange(len(drug))[:, None], drug] = 1
    groups = episodes["indication"].fill_null("").to_numpy() if "indication" in episodes.columns else None
    return Design(
        omics={modality.name: _omics_block(modality, encoded) for modality in schema.modalities},
        patient=states.patient,
        regimen=regimen[:, 1:],
        summary=encoded.summary_raw[states.patient],
        groups=np.full(len(drug), "", dtype=str) if groups is None else groups.astype(str),
    )


def _omics_block(schema: ModalitySchema, encoded: EncodedPatients) -> OmicsBlock:
    modality = encoded.modalities[schema.name]
    return OmicsBlock(
        matrix=normalize_log1p(modality.matrix) if schema.kind == "count" else modality.matrix,
        mean=schema.mean,
        inverse_sd=schema.inverse_sd,
        panel=modality.panel,
        measured=schema.measured(),
        explicit=schema.explicit,
    )
