"""Fit the input schema on training subjects alone: vocabularies, feature statistics, summary columns, survival bins.

In: a cohort, its record store and the training rows of its episodes. Out: an :class:`InputSchema`. Nothing here may see
a tuning or held-out subject; :func:`fit_schema` therefore takes only rows, never a split.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ican_ml.encoding.backends import Backend
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.feature_stats import feature_stats
from ican_ml.encoding.normalize_log1p import normalize_log1p
from ican_ml.inputs.assemble import CohortStates, assemble
from ican_ml.inputs.encode import encode_summary
from ican_ml.inputs.schema import Covariate, InputSchema, ModalitySchema, Task
from ican_ml.records.aggregates import fit_aggregates
from ican_ml.records.store import RecordStore, histories, latest_rows
from ican_ml.records.vocabulary import Vocabulary
from ican_ml.records.vocabulary_fit import fit_vocabulary

if TYPE_CHECKING:
    import polars as pl

    from ican_ml.cohort.cohort import Cohort
    from ican_ml.cohort.omics import Modality

_BINARY_SD_FLOOR = 0.1
_COLUMNS = 32
_ROBUST_SD_PER_IQR = 1.349


@dataclass(kw_only=True, slots=True)
class InputConfig:
    """What the network may see of a patient.

    Attributes
    ----------
    modalities
        Names of the omics modalities to use; ``None`` = all that the cohort has.
    features
        Modality to the names of its features that are used; one that is not named is used whole. A count is still
        scaled by its row's total, which is then that of these features.
    records
        Use the longitudinal record where the cohort has one.
    codes
        Codes of the record that the network knows, each with all below it: ``LAB`` is ``LAB//HGB`` too. Any other is an
        unknown code. ``None`` = every code.
    treatments
        Say which treatment is asked about.
    covariates
        Columns of the episodes table known at prediction time (text = one-hot, numbers as they are).
    max_tokens, max_events, max_per_code
        How many features of each modality, and how many events, become tokens; of those, how many of one code.
    summary_codes
        Of how many codes, the commonest, the summary of a record has columns.
    min_subjects
        A record code, or a drug, seen in fewer training subjects is not given an identity of its own.
    survival_bins
        Discrete-time intervals of a survival task.
    """

    modalities: list[str] | None = None
    features: dict[str, list[str]] = field(default_factory=dict)
    records: bool = True
    codes: list[str] | None = None
    treatments: bool = True
    covariates: list[str] = field(default_factory=lambda: ["indication"])
    max_tokens: int = 32
    max_events: int = 96
    max_per_code: int = 24
    summary_codes: int = 512
    min_subjects: int = 10
    survival_bins: int = 12

    def __post_init__(self) -> None:
        names = ("max_tokens", "max_events", "max_per_code", "summary_codes", "min_subjects", "survival_bins")
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"inputs.{name}: expected a whole number of at least 1, got {getattr(self, name)}")


def fit_schema(
    cohort: Cohort,
    store: RecordStore | None,
    episodes: pl.DataFrame,
    config: InputConfig,
    *,
    outcomes: Sequence[tuple[str, str]],
    backend: Backend = "auto",
) -> InputSchema:
    """Fit everything between patient and network on the training rows ``episodes``.

    Parameters
    ----------
    outcomes
        Name and kind of each task.

    Raises
    ------
    ValueError
        If a covariate or an outcome column is missing from the episodes, or an outcome has no values to fit.
    """
    covariates = tuple(_fit_covariate(episodes, name) for name in config.covariates)
    states = assemble(cohort, store, episodes, config.covariates, lay_out=False)
    modalities = tuple(
        _fit_modality(cohort.modalities[name], states, config.max_tokens, backend) for name in cohort.modalities
    )
    drugs = _fit_drugs(episodes, config.min_subjects)
    targets = {drug: genes for drug, genes in sorted(cohort.targets.items()) if genes}
    genes = {gene for modality in modalities for gene in modality.genes}
    classes = sorted({cohort.classes[drug] for drug in drugs if drug in cohort.classes})
    vocabulary = _fit_vocabulary(store, states, config) if store is not None else None
    schema = InputSchema(
        modalities=modalities,
        genes=tuple(sorted(genes | {gene for targeted in targets.values() for gene in targeted})),
        drugs=drugs,
        classes=tuple(classes),
        targets=targets,
        class_of=dict(sorted(cohort.classes.items())),
        vocabulary=vocabulary,
        aggregates=fit_aggregates(vocabulary, states.histories, most=config.summary_codes)
        if vocabulary is not None and states.histories is not None
        else None,
        max_events=config.max_events,
        max_per_code=config.max_per_code,
        covariates=covariates,
        summary_mean=np.empty(0, np.float32),
        summary_inverse_sd=np.empty(0, np.float32),
        tasks=tuple(_fit_task(episodes, name, kind, config.survival_bins) for name, kind in outcomes),
    )
    return _with_summary_statistics(schema, states)


def refit_tasks(
    schema: InputSchema, episodes: pl.DataFrame, config: InputConfig, *, outcomes: Sequence[tuple[str, str]]
) -> InputSchema:
    """A pretrained network's schema for other outcomes, fitted on the training rows ``episodes``.

    Raises
    ------
    ValueError
        If the pretrained network sees other covariates, or an outcome is missing or has no values to fit.
    """
    known = [covariate.name for covariate in schema.covariates]
    if known != list(config.covariates):
        raise ValueError(
            f"training.init_from: expected the covariates of the pretrained network, {known}, got "
            f"{list(config.covariates)}; set inputs.covariates alike in both runs"
        )
    return replace(
        schema, tasks=tuple(_fit_task(episodes, name, kind, config.survival_bins) for name, kind in outcomes)
    )


def _fit_modality(modality: Modality, states: CohortStates, max_tokens: int, backend: Backend) -> ModalitySchema:
    rows = states.patients.omics[modality.name]
    panels: dict[str, tuple[int, ...] | None] = {
        name: None if mask.all() else tuple(np.flatnonzero(mask).tolist())
        for name, mask in sorted(modality.panels.items())
    }
    measured = np.stack([np.asarray(mask, bool) for _, mask in sorted(modality.panels.items())])
    samples_of_panel = np.bincount(rows.panel, minlength=len(panels) + 1)[1:]
    n_measured = samples_of_panel @ measured.astype(np.int64)
    raw = feature_stats(rows.matrix, backend=backend)
    if modality.explicit:
        n_measured = np.bincount(rows.matrix.indices, minlength=rows.matrix.n_features)
    normalised = normalize_log1p(rows.matrix, backend=backend) if modality.kind == "count" else rows.matrix
    stats = feature_stats(normalised, backend=backend) if modality.kind == "count" else raw
    count = np.maximum(n_measured, 1)
    mean = stats.sum / count
    sd = np.sqrt(np.maximum(stats.sum_of_squares / count - mean**2, 0))
    if modality.kind == "binary":
        sd = np.where(sd > 0, np.maximum(sd, _BINARY_SD_FLOOR), 0)
    elif modality.kind == "continuous" and modality.explicit:
        mean, sd = _robust_location(rows.matrix, mean, sd)
    inverse_sd = np.divide(1.0, sd, out=np.zeros_like(sd), where=sd > 1e-8)
    typical = np.divide(raw.count, raw.sum, out=np.zeros_like(sd), where=raw.sum > 0)
    return ModalitySchema(
        name=modality.name,
        kind=modality.kind,
        explicit=modality.explicit,
        features=modality.features,
        genes=tuple(gene or feature for gene, feature in zip(modality.genes, modality.features, strict=True)),
        mean=mean.astype(np.float32),
        inverse_sd=inverse_sd.astype(np.float32),
        rank_scale=(typical if modality.kind == "count" else inverse_sd).astype(np.float32),
        panels=panels,
        max_tokens=max_tokens,
    )


def _robust_location(
    matrix: CSRBatch, mean: npt.NDArray[np.float64], sd: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Median and IQR / 1.349 by feature (order statistics of the stored values); mean and sd where the IQR is 0."""
    order = np.lexsort((matrix.values, matrix.indices))
    values = matrix.values[order].astype(np.float64)
    size = np.bincount(matrix.indices, minlength=matrix.n_features)
    start = np.cumsum(size) - size
    last = len(values) - 1
    low, middle, high = (values[np.minimum(start + size * q // 4, last)] if last >= 0 else mean for q in (1, 2, 3))
    spread = (high - low) / _ROBUST_SD_PER_IQR
    usable = (spread > 0) & (size >= 4)
    return np.where(usable, middle, mean), np.where(usable, spread, sd)


def _fit_drugs(episodes: pl.DataFrame, min_subjects: int) -> tuple[str, ...]:
    seen = {
        (drug, subject)
        for drugs, subject in zip(episodes["treatment"], episodes["subject_id"], strict=True)
        for drug in (drugs if drugs is not None else ())
    }
    count = Counter(drug for drug, _ in seen)
    return tuple(sorted(drug for drug, subjects in count.items() if subjects >= min_subjects))


def _fit_vocabulary(store: RecordStore, states: CohortStates, config: InputConfig) -> Vocabulary:
    """From each training subject's latest state, so that a subject with many episodes counts once."""
    last = latest_rows(states.subject_id, states.prediction_time)
    known = histories(store, states.subject_id[last], states.prediction_time[last])
    vocabulary = fit_vocabulary(known, config.min_subjects, config.codes)
    if config.codes and not vocabulary.codes:
        raise ValueError(f"inputs.codes: expected codes of the record, got {config.codes}, which too few have")
    return vocabulary


def _fit_covariate(episodes: pl.DataFrame, name: str) -> Covariate:
    if name not in episodes.columns:
        raise ValueError(
            f"inputs.covariates: expected columns of episodes.parquet, got {name!r}; it has {sorted(episodes.columns)}"
        )
    column = episodes[name]
    if column.dtype.is_temporal() or column.dtype.is_nested():
        raise ValueError(
            f"inputs.covariates: expected numbers or text, got {name!r} of {column.dtype}; the network sees no "
            "calendar date and no list: derive a number from it (days before prediction_time, say) or leave it out"
        )
    if column.dtype.is_numeric():
        return Covariate(name=name, categories=None)
    return Covariate(name=name, categories=tuple(sorted({str(v) for v in column.drop_nulls()})))


def _fit_task(episodes: pl.DataFrame, name: str, kind: str, bins: int) -> Task:
    wanted = [f"{name}_time", f"{name}_event"] if kind == "survival" else [name]
    if missing := [column for column in wanted if column not in episodes.columns]:
        raise ValueError(
            f"task {name!r} ({kind}): expected columns of episodes.parquet, got no {missing}; "
            f"it has {sorted(episodes.columns)}"
        )
    if kind == "binary":
        return Task(name=name, kind=kind)
    if kind == "regression":
        values = episodes[name].drop_nulls().to_numpy().astype(np.float64)
        if not len(values):
            raise ValueError(f"task {name!r}: expected training episodes with a value, got none")
        return Task(name=name, kind=kind, centre=float(values.mean()), scale=float(values.std()) or 1.0)
    time = episodes.filter(episodes[f"{name}_event"].fill_null(False))[f"{name}_time"].drop_nulls().to_numpy()
    if len(time) < bins:
        raise ValueError(
            f"task {name!r}: expected at least {bins} training events for {bins} intervals, got {len(time)}"
        )
    edges = np.unique(np.quantile(time, np.arange(1, bins + 1) / bins, method="higher"))
    return Task(name=name, kind=kind, edges=tuple(float(edge) for edge in edges))


def _with_summary_statistics(schema: InputSchema, states: CohortStates) -> InputSchema:
    width = len(schema.summary_names)
    blank = replace(schema, summary_mean=np.zeros(width, np.float32), summary_inverse_sd=np.ones(width, np.float32))
    raw = encode_summary(blank, states.histories, states.patients.covariates, len(states.patients.regimens))
    mean, sd = np.empty(width), np.empty(width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for start in range(0, width, _COLUMNS):
            columns = raw[:, start : start + _COLUMNS].astype(np.float64)
            mean[start : start + _COLUMNS] = np.nanmean(columns, axis=0)
            sd[start : start + _COLUMNS] = np.nanstd(columns, axis=0)
    return replace(
        schema,
        summary_mean=np.nan_to_num(mean).astype(np.float32),
        summary_inverse_sd=np.divide(1.0, sd, out=np.zeros_like(sd), where=sd > 1e-8).astype(np.float32),
    )
