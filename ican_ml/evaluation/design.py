"""What a baseline sees: the same patients, omics, regimens and record summaries as the network.

`Design` holds the raw blocks, omics sparse; `ridge_matrix` and `boosting_matrix` make one matrix out of them, learning
every statistic (means, deviations, medians, principal components) from the training rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ican_ml.evaluation.omics_block import OmicsBlock, components
from ican_ml.evaluation.outcome import FloatArray, IntArray
from ican_ml.evaluation.weighted import label_codes

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Design:
    """Inputs of the baselines, aligned with the episode rows.

    Attributes
    ----------
    omics
        modality -> its values [patients, features].
    patient
        int64 [rows]: the patient state of each row, an index into the omics blocks.
    regimen
        float32 [rows, drugs]: 1 where the drug is part of the regimen.
    summary
        float32 [rows, summaries]: record aggregates and covariates; NaN = missing.
    groups
        str [rows]: the indication.
    """

    omics: Mapping[str, OmicsBlock]
    patient: IntArray
    regimen: Float32Array
    summary: Float32Array
    groups: NDArray[np.str_]

    def __post_init__(self) -> None:
        rows = len(self.patient)
        for name in ("regimen", "summary", "groups"):
            found = len(getattr(self, name))
            if found != rows:
                raise ValueError(f"{name} must have one entry per row; expected {rows}, got {found}")
        for name, block in self.omics.items():
            if rows and self.patient.max() >= block.n_patients:
                raise ValueError(
                    f"omics block {name!r} has {block.n_patients} patients, but rows refer to {self.patient.max()}"
                )

    def take(self, rows: IntArray) -> Design:
        """Only some rows and their patients."""
        patients, patient = np.unique(self.patient[rows], return_inverse=True)
        return replace(
            self,
            omics={
                name: replace(block, matrix=block.matrix.take(patients), panel=block.panel[patients])
                for name, block in self.omics.items()
            },
            patient=patient,
            regimen=self.regimen[rows],
            summary=self.summary[rows],
            groups=self.groups[rows],
        )

    @property
    def n_rows(self) -> int:
        """Number of episode rows."""
        return len(self.patient)

    @property
    def n_features(self) -> int:
        """Number of raw features of a row."""
        omics = sum(block.n_features for block in self.omics.values())
        return omics + int(self.regimen.shape[1] + self.summary.shape[1])

    @property
    def single_drug(self) -> bool:
        """Every row is one drug out of several, on a sample with omics: a screen, rather than patients on regimens."""
        several = self.regimen.shape[1] > 1 and self.n_rows > 0 and bool(self.omics)
        return several and bool((self.regimen.sum(axis=1) == 1).all())


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixConfig:
    """How raw blocks become a matrix.

    Attributes
    ----------
    components
        Principal components kept of a wide omics block.
    wide_block
        Blocks with more features than this are reduced.
    clip
        Standardised values are cut at plus and minus this: heavy tails.
    """

    components: int = 60
    wide_block: int = 256
    clip: float = 10.0

    def __post_init__(self) -> None:
        if self.components < 1 or self.wide_block < 1 or self.clip <= 0:
            raise ValueError(
                "components, wide_block and clip must be positive; "
                f"got {self.components}, {self.wide_block}, {self.clip}"
            )


def ridge_matrix(
    design: Design, fit_rows: IntArray, config: MatrixConfig, seed: int, *, together: bool = False
) -> FloatArray:
    """Standardised, imputed, clipped float64 [rows, features] for linear models; constant columns are dropped.

    ``together``: the components are those of all wide blocks at once, rather than as many of each.
    """
    parts = []
    for block, reduced in _patient_blocks(design, fit_rows, config, seed, together=together):
        columns = block[design.patient].astype(np.float64)
        parts.append(columns if reduced else _standardised(columns, fit_rows, config.clip))
    for table in (design.regimen, design.summary, _one_hot(design.groups)):
        parts.append(_standardised(table.astype(np.float64), fit_rows, config.clip))
    return np.concatenate(parts, axis=1)


def boosting_matrix(
    design: Design, fit_rows: IntArray, config: MatrixConfig, seed: int, *, max_cells: float
) -> Float32Array:
    """float32 [rows, features] with NaN where missing; components in place of wide blocks beyond `max_cells` cells."""
    if design.n_rows * design.n_features > max_cells:
        omics = [block for block, _ in _patient_blocks(design, fit_rows, config, seed)]
    else:
        omics = [block.dense() for block in design.omics.values()]
    parts = [block[design.patient] for block in omics]
    return np.concatenate([*parts, design.regimen, design.summary, _one_hot(design.groups)], axis=1, dtype=np.float32)


def patient_components(design: Design, fit_rows: IntArray, config: MatrixConfig, seed: int) -> FloatArray:
    """Standardised float64 [patients, features] of the omics alone, wide blocks as components."""
    fit_patients = np.unique(design.patient[fit_rows])
    parts = [
        block.astype(np.float64) if reduced else _standardised(block.astype(np.float64), fit_patients, config.clip)
        for block, reduced in _patient_blocks(design, fit_rows, config, seed)
    ]
    return np.concatenate(parts, axis=1) if parts else np.zeros((int(design.patient.max(initial=-1)) + 1, 0))


def _patient_blocks(
    design: Design, fit_rows: IntArray, config: MatrixConfig, seed: int, *, together: bool = False
) -> list[tuple[Float32Array, bool]]:
    """Omics blocks [patients, features], first wide ones as components of the training patients; and which are."""
    wide = [block for block in design.omics.values() if block.n_features > config.wide_block]
    narrow = [(block.dense(), False) for block in design.omics.values() if block.n_features <= config.wide_block]
    fit_patients = np.unique(design.patient[fit_rows])
    blocks = []
    for each in [wide] if together and wide else [[block] for block in wide]:
        groups = np.zeros(each[0].n_patients, dtype=np.int64)
        groups[design.patient] = label_codes(design.groups)[0]
        reduced = components(each, fit_patients, groups, count=config.components, clip=config.clip, seed=seed)
        blocks.append((reduced, True))
    return blocks + narrow


def _standardised(columns: FloatArray, fit_rows: IntArray, clip: float) -> FloatArray:
    training = columns[fit_rows]
    seen = ~np.isnan(training).all(axis=0)
    columns, training = columns[:, seen], training[:, seen]
    median = np.nanmedian(training, axis=0) if training.size else np.zeros(columns.shape[1])
    filled = np.where(np.isnan(columns), median, columns)
    mean, sd = filled[fit_rows].mean(axis=0), filled[fit_rows].std(axis=0)
    varies = sd > 1e-9
    standard: FloatArray = np.clip((filled[:, varies] - mean[varies]) / sd[varies], -clip, clip)
    return standard


def _one_hot(labels: NDArray[np.str_]) -> Float32Array:
    codes, names = label_codes(labels)
    columns = len(names) if len(names) > 1 else 0
    return np.equal(codes[:, None], np.arange(columns)).astype(np.float32)
