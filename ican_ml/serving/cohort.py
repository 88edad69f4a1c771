"""From a bundle and a whole cohort to one prediction an episode, with onnxruntime and the cohort's readers: no torch.

    found = predict_cohort("runs/demo/bundle", "cohorts/other")
    write_predictions(found, Path("predictions.parquet"))

The cohort may be another than the one trained on: what it names otherwise, lacks or adds is met by name
(:mod:`ican_ml.serving.align`), noted for every episode, and summed up as shift (:mod:`ican_ml.evaluation.shift`).
Episodes are predicted some subjects at a time, so memory does not grow with the cohort beyond its own files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ican_ml.cohort.cohort import Cohort, read_cohort
from ican_ml.evaluation.conformal import Calibration
from ican_ml.evaluation.evaluate import MIN_SUBJECTS
from ican_ml.evaluation.shift import ColumnShift, RecordShift, standardised, unseen_names
from ican_ml.inputs.answer import Float64, event_free, risk, summarise
from ican_ml.inputs.assemble import CohortStates, assemble
from ican_ml.inputs.encode import EncodedPatients, Int64, collate
from ican_ml.inputs.regimens import INHIBITOR
from ican_ml.inputs.schema import InputSchema, Task
from ican_ml.records.meds import read_records
from ican_ml.records.store import RecordStore
from ican_ml.serving.align import AlignedOmics, Alignment, align, align_omics, dense, encode_aligned
from ican_ml.serving.predictor import Predictor

_EPISODES_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortPredictions:
    """Predictions of every episode, in the cohort's order.

    Attributes
    ----------
    cohort
        As read: only the modalities that the model knows.
    tasks
        Of the model.
    prediction
        By task, float64 [episodes]: probability, expected days within the observed span, or expected value.
    risk
        By survival task, float64 [episodes]: what survival is ranked by; see :func:`ican_ml.inputs.answer.risk`.
    event_free
        By survival task, float64 [episodes]: probability to be event-free at :func:`horizon`.
    notes
        By name, one entry an episode: shares of the record's events that are backed off and unknown (null without
        events), modalities that were not measured, drugs that training did not see, share of the measured values that
        lie beyond 5 training standard deviations.
    shift
        Plain and without a subject: ``records`` (None where not used), ``modalities``, ``summary`` (numeric columns),
        ``covariates``, ``drugs``, and the numbers of ``episodes`` and ``subjects``.
    calibration
        Of the model, by task with prediction sets.
    """

    cohort: Cohort
    tasks: tuple[Task, ...]
    prediction: dict[str, Float64]
    risk: dict[str, Float64]
    event_free: dict[str, Float64]
    notes: dict[str, list[Any]]
    shift: dict[str, Any]
    calibration: Mapping[str, Calibration]


def horizon(task: Task) -> float:
    """The middle edge in days: where survival is asked for its calibration."""
    return task.edges[(len(task.edges) - 1) // 2]


def predict_cohort(bundle: str | Path, path: str | Path, *, family: str | None = None) -> CohortPredictions:
    """Predict every episode of a cohort.

    Parameters
    ----------
    bundle, path
        Folders of the bundle and of the cohort.
    family
        Only the episodes whose ``task`` column says so; ``None`` = all.

    Raises
    ------
    BundleError, CohortError, RecordError
        If the bundle was changed, or the cohort cannot be read as it is.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    predictor = Predictor(bundle)
    present = {file.stem for file in Path(path).glob("omics/*.h5ad")}
    known = [model.name for model in predictor.schema.modalities]
    cohort = read_cohort(path, task=family, modalities=[name for name in known if name in present])
    if not len(cohort.episodes):
        raise ValueError("episodes.parquet: expected at least one episode, got none")
    store = read_records(path) if cohort.has_records and predictor.schema.vocabulary is not None else None
    alignment = align(predictor.schema, cohort)
    episodes, covariates = _usable_covariates(predictor.schema, cohort.episodes)
    tally = _Tally(alignment, cohort)
    n = len(episodes)
    prediction = {task.name: np.empty(n) for task in predictor.schema.tasks}
    risks = {task.name: np.empty(n) for task in predictor.schema.tasks if task.kind == "survival"}
    curves = {name: np.empty(n) for name in risks}
    with tqdm(total=n, disable=None, unit="episode") as bar:
        for rows in _some_subjects(episodes["subject_id"].to_numpy()):
            states, omics, encoded = encode_rows(alignment, store, episodes[rows], covariates)
            tally.add(rows, states, omics, encoded)
            outputs = predictor.run(collate(encoded, np.arange(encoded.n_rows)))
            for task in predictor.schema.tasks:
                output = outputs[task.name][states.patient, states.slot]
                prediction[task.name][rows] = summarise(task, output)
                if task.kind == "survival":
                    risks[task.name][rows] = risk(output)
                    curves[task.name][rows] = _at_horizon(task, output)
            bar.update(len(rows))
    return CohortPredictions(
        cohort=cohort,
        tasks=predictor.schema.tasks,
        prediction=prediction,
        risk=risks,
        event_free=curves,
        notes=tally.notes,
        calibration=predictor.calibration,
        shift={
            "episodes": n,
            "subjects": cohort.episodes["subject_id"].n_unique(),
            "records": tally.record.to_dict() if tally.record and store is not None else None,
            "modalities": tally.modalities(sorted(present - set(known))),
            "summary": tally.summary.to_dict(),
            "covariates": _covariate_shift(predictor.schema, episodes, covariates),
            "drugs": _drug_shift(alignment.schema, cohort.episodes),
        },
    )


def encode_rows(
    alignment: Alignment, store: RecordStore | None, episodes: pl.DataFrame, covariates: list[str]
) -> tuple[CohortStates, dict[str, AlignedOmics], EncodedPatients]:
    """Patients of some episodes, their omics in the model's columns, and the network's inputs."""
    states = assemble(alignment.cohort, store, episodes, covariates)
    omics = align_omics(alignment, states.patients)
    return states, omics, encode_aligned(alignment, states.patients, omics)


def text_column(episodes: pl.DataFrame, name: str) -> pl.Series:
    """A column as text; all null where there is none, or a nested one."""
    dtype = episodes.schema.get(name)
    if dtype is None or dtype.is_nested():
        return pl.Series(name, [None] * len(episodes), dtype=pl.String)
    return episodes[name].cast(pl.String)


def write_predictions(found: CohortPredictions, path: Path) -> None:
    """Write one Parquet file. It holds subject ids: it must stay where the cohort may lie."""
    episodes = found.cohort.episodes
    kept = ["subject_id", "prediction_time", "treatment"]
    lists = pl.List(pl.String)
    frame = episodes.select(kept).with_columns(
        text_column(episodes, "indication"),
        *(pl.Series(name, values) for name, values in found.prediction.items()),
        *(
            pl.Series(
                f"note_{name}", values, dtype=lists if isinstance(values[0], list) else pl.Float64, nan_to_null=True
            )
            for name, values in found.notes.items()
        ),
    )
    part = path.with_name(path.name + ".part")
    frame.write_parquet(part)
    part.replace(path)


class _Tally:
    """Notes by episode, and the running shift."""

    def __init__(self, alignment: Alignment, cohort: Cohort) -> None:
        self.alignment = alignment
        schema = alignment.schema
        treatments = cohort.episodes["treatment"].to_list()
        self.notes: dict[str, list[Any]] = {
            "codes_backed_off": [np.nan] * len(treatments),
            "codes_unknown": [np.nan] * len(treatments),
            "missing_modalities": [[] for _ in treatments],
            "unknown_drugs": _unknown_drugs(schema, treatments),
            "out_of_range": [np.nan] * len(treatments),
        }
        self.record = RecordShift(schema.vocabulary) if schema.vocabulary else None
        self.columns = {m.name: ColumnShift(m.features, ranged=m.kind != "binary") for m in schema.modalities}
        self.subjects = dict.fromkeys(self.columns, 0)
        self.episodes = dict.fromkeys(self.columns, 0)
        one_hot = {column for c in schema.covariates if c.categories is not None for column in c.columns}
        self.numeric = np.array([name not in one_hot for name in schema.summary_names], bool)
        self.summary = ColumnShift([name for name in schema.summary_names if name not in one_hot])

    def add(self, rows: Int64, states: CohortStates, omics: dict[str, AlignedOmics], encoded: EncodedPatients) -> None:
        """Count some episodes: every one of their subjects."""
        schema, subject = self.alignment.schema, states.subject_id
        raw = encoded.summary_raw[:, self.numeric].astype(np.float64)
        z = (raw - schema.summary_mean[self.numeric]) * schema.summary_inverse_sd[self.numeric]
        beyond, counted = self.summary.add(z, ~np.isnan(raw), subject)
        missing: list[list[str]] = [[] for _ in subject]
        for model in schema.modalities:
            present = encoded.modalities[model.name].panel > 0
            for row in np.flatnonzero(~present).tolist():
                missing[row].append(model.name)
            if not present.any():
                continue
            self.subjects[model.name] += len(np.unique(subject[present]))
            self.episodes[model.name] += int(present[states.patient].sum())
            values, stored = dense(omics[model.name].rows.matrix)
            known = stored if model.explicit else omics[model.name].measured[omics[model.name].rows.panel]
            scaled = standardised(model, values, encoded.modalities[model.name].total)
            more, of = self.columns[model.name].add(scaled, known, subject)
            beyond, counted = beyond + more, counted + of
        share = np.divide(beyond, counted, out=np.full(len(counted), np.nan), where=counted > 0)
        found: dict[str, Any] = {"missing_modalities": missing, "out_of_range": share}
        if self.record is not None and states.patients.events is not None:
            shares = self.record.add(states.patients.events, subject)
            found |= {f"codes_{name}": values for name, values in shares.items()}
        for name, values in found.items():
            for row, patient in zip(rows.tolist(), states.patient.tolist(), strict=True):
                self.notes[name][row] = values[patient]

    def modalities(self, unknown: list[str]) -> dict[str, Any]:
        """What became of each modality; ``unknown``: the cohort's that the model does not know."""
        alignment = self.alignment
        found: dict[str, Any] = {}
        for model in alignment.schema.modalities:
            if model.name not in alignment.columns:
                found[model.name] = {"used": False, "why": alignment.unused.get(model.name, "the cohort has none")}
                continue
            columns = alignment.columns[model.name]
            n_episodes = len(self.notes["missing_modalities"])
            few = self.subjects[model.name] < MIN_SUBJECTS
            found[model.name] = {
                "used": True,
                "episodes_measured": None if few else self.episodes[model.name] / n_episodes,
                "features_absent": len(model.features) - int((columns >= 0).sum()),
                "features_unknown": int((columns < 0).sum()),
                "assays": alignment.assays(model),
                **({} if few else self.columns[model.name].to_dict()),
            }
        return found | {name: {"used": False, "why": "the model does not know it"} for name in unknown}


def _some_subjects(subject_id: Int64) -> Iterator[Int64]:
    """Rows of whole subjects, about `_EPISODES_AT_ONCE` at a time, each part in the order of the table."""
    order = np.argsort(subject_id, kind="stable")
    starts = np.flatnonzero(np.diff(subject_id[order], prepend=subject_id.min() - 1))
    first = 0
    for stop in [*starts[1:].tolist(), len(order)]:
        if stop - first >= _EPISODES_AT_ONCE or stop == len(order):
            yield order[first:stop]
            first = stop


def _usable_covariates(schema: InputSchema, episodes: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The model's covariates that the cohort has, texts of numbers read as numbers; nested columns are left aside."""
    usable = []
    for covariate in schema.covariates:
        dtype = episodes.schema.get(covariate.name)
        if dtype is None or dtype.is_nested():
            continue
        if covariate.categories is None and not dtype.is_numeric():
            text = pl.col(covariate.name).cast(pl.String)
            number = pl.col(covariate.name) if dtype == pl.Boolean else text
            episodes = episodes.with_columns(number.cast(pl.Float64, strict=False))
        usable.append(covariate.name)
    return episodes, usable


def _covariate_shift(schema: InputSchema, episodes: pl.DataFrame, usable: list[str]) -> dict[str, Any]:
    subject = episodes["subject_id"].to_numpy()
    found: dict[str, Any] = {}
    for covariate in schema.covariates:
        if covariate.name not in usable:
            found[covariate.name] = {"used": False}
            continue
        values = episodes[covariate.name]
        found[covariate.name] = {"used": True, "unknown": values.null_count() / len(values)}
        if covariate.categories is not None:
            known = set(covariate.categories)
            texts = [None if value is None else str(value) for value in values.to_list()]
            unseen = [[] if text is None or text in known else [text] for text in texts]
            found[covariate.name]["unseen"] = unseen_names(unseen, subject)
    return found


def _drug_shift(schema: InputSchema, episodes: pl.DataFrame) -> dict[str, Any]:
    """Unseen drugs, and for each common one how many target genes it is scored by (of those that the cohort names)."""
    unseen = _unknown_drugs(schema, episodes["treatment"].to_list())
    found = unseen_names(unseen, episodes["subject_id"].to_numpy())
    for drug in found["common"]:
        targets = schema.targets.get(drug["name"], ())
        drug |= {"targets": len(targets), "targets_known": sum(gene in schema.gene_id for gene in targets)}
    return found


def _unknown_drugs(schema: InputSchema, treatments: list[list[str]]) -> list[list[str]]:
    return [
        [drug for drug in drugs if drug not in schema.drug_id and not drug.startswith(INHIBITOR)]
        for drugs in treatments
    ]


def _at_horizon(task: Task, hazard_logits: np.ndarray[Any, Any]) -> Float64:
    """Probability to be event-free at the horizon: [n, intervals] -> [n]."""
    return np.asarray(event_free(hazard_logits)[:, (len(task.edges) - 1) // 2])
