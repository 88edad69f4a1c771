"""Health records of the simulated cohort: the events that a hospital would have stored, as a MEDS 0.4 dataset.

In: `Health` and `Course` (latent), the subjects' calendar; out: one polars table of events (subject_id, time, code,
numeric_value, unit), which `write_meds` writes as ``data/<split>/0.parquet`` with its metadata.

Laboratories are read at visits about every 45 days from up to a year before the first line until observation ends;
a fifth of the visits is missed, and no visit measures everything. With reserve r(t), inflammation q(t) and noise e:
albumin = 38 + 4 r + 0.8 e (g/L), haemoglobin = 125 + 11 r - 3 q + 3 e (g/L, or g/dL at two sites),
log CRP = 2.2 + 0.6 q + 0.15 e (mg/L, or mg/dL at one site), log NLR = 1.2 + 0.4 q + 0.1 e,
log LDH = 5.4 + 0.2 q + 0.12 e (U/L), ECOG = round(1.2 - 0.6 r + 0.4 q + 0.3 e) in 0..4, and a tumour marker that
rises while a line fails. Most subjects are also seen on the very morning of `prediction_time` (usable: cuts are
inclusive). Events go on after every prediction_time, death included: whoever reads the cohort must cut.
Times are local (``source_timezone``) and naive, to the minute.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from meds import schema as meds
from numpy.typing import NDArray

from ican_ml.cohort import simulate_world as world_
from ican_ml.cohort.simulate_course import MAX_LINES, Course, Health
from ican_ml.cohort.simulate_world import CLASS_NAME, DRUGS

PREDICTION_HOUR = 9.0
_DAY = 86_400_000_000
_VISIT_EVERY, _VISIT_MISSED, _BASELINE_SEEN = 45.0, 0.20, 0.95
_MEASURED = {"ALB": 0.92, "HGB": 0.95, "CRP": 0.88, "NLR": 0.85, "LDH": 0.60, "marker": 0.55, "ECOG": 0.75}
_COMORBIDITY = (
    ("I10", -0.6, 0.1), ("E11.9", -1.6, 0.2), ("J44.9", -2.3, 0.5), ("N18.3", -2.6, 0.5), ("I50.9", -2.9, 0.6),
)  # fmt: skip
_PRIOR = (("PLT-001", "L01XA"), ("TAX-001", "L01CD"), ("PYR-001", "L01BC"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Subjects:
    """Who the N subjects are. `entry`: midnight of the first line's day, datetime64[us]; `birth` likewise."""

    subject_id: NDArray[np.int64]
    indication: NDArray[np.int64]
    site: NDArray[np.int64]
    female: NDArray[np.bool_]
    birth: NDArray[np.datetime64]
    entry: NDArray[np.datetime64]
    bare_record: NDArray[np.bool_]  # referred with a diagnosis only: no history before the first line
    held_out: NDArray[np.bool_]


class _Events:
    """Collects blocks of events given as (subject rows, day or None for static, code, value, unit)."""

    def __init__(self, subjects: Subjects) -> None:
        self._subjects, self._blocks = subjects, list[pl.DataFrame]()

    def add(
        self,
        rows: NDArray[np.int64],
        time: NDArray[np.datetime64] | None,
        code: str | NDArray[np.object_],
        value: NDArray[np.float64] | None = None,
        unit: str | NDArray[np.object_] | None = None,
    ) -> None:
        n = len(rows)
        text = [x if isinstance(x, np.ndarray) else np.full(n, x, dtype=object) for x in (code, unit)]
        moment = np.full(n, np.datetime64("NaT", "us")) if time is None else time
        number = np.full(n, np.nan) if value is None else value
        self._blocks.append(
            pl.DataFrame(
                {
                    "subject_id": self._subjects.subject_id[rows],
                    "time": pl.Series(moment.astype(np.int64)).cast(pl.Datetime("us")),
                    "code": pl.Series(text[0].tolist(), dtype=pl.String),
                    "numeric_value": number.astype(np.float32),
                    "unit": pl.Series(text[1].tolist(), dtype=pl.String),
                }
            ).with_columns(
                pl.when(pl.lit(time is not None)).then(pl.col("time")).alias("time"),
                pl.col("numeric_value").fill_nan(None),
            )
        )

    def table(self) -> pl.DataFrame:
        return pl.concat(self._blocks).sort(
            "subject_id", "time", "code", "numeric_value", nulls_last=False, maintain_order=True
        )


def at(subjects: Subjects, rows: NDArray[np.int64], day: NDArray[np.float64]) -> NDArray[np.datetime64]:
    """Moment `day` days after the first line's midnight, to the minute."""
    offset = (np.round(day * 1440.0) * (_DAY // 1440)).astype("timedelta64[us]")
    return np.asarray(subjects.entry[rows] + offset)


def simulate_records(subjects: Subjects, health: Health, course: Course, rng: np.random.Generator) -> pl.DataFrame:
    """All events of all subjects, sorted by subject, then time with static rows first."""
    events = _Events(subjects)
    everyone = np.arange(len(subjects.subject_id))
    events.add(everyone, None, np.where(subjects.female, "SEX//FEMALE", "SEX//MALE").astype(object))
    events.add(everyone, subjects.birth, meds.birth_code)
    _history(events, subjects, health, rng)
    _laboratories(events, subjects, health, course, rng)
    _therapies(events, subjects, course, rng)
    dead = np.flatnonzero(course.death <= course.last)
    events.add(dead, at(subjects, dead, np.ceil(course.death[dead])), meds.death_code)
    return events.table()


def _history(events: _Events, subjects: Subjects, health: Health, rng: np.random.Generator) -> None:
    everyone = np.arange(len(subjects.subject_id))
    diagnosed = -np.round(rng.uniform(20, 380, len(everyone)), 3)
    tumour = np.array([f"ICD10//{code}" for code in world_.INDICATION_ICD10], dtype=object)
    events.add(everyone, at(subjects, everyone, diagnosed), tumour[subjects.indication])
    full = ~subjects.bare_record
    for code, level, slope in _COMORBIDITY:
        logit = level + slope * health.frailty
        rows = np.flatnonzero(full & (rng.random(len(everyone)) < 1.0 / (1.0 + np.exp(-logit))))
        events.add(rows, at(subjects, rows, -rng.uniform(30, 1500, len(rows))), f"ICD10//{code}")
    for number, (drug, _) in enumerate(_PRIOR):
        rows = np.flatnonzero(full & (health.prior_lines > number))
        events.add(rows, at(subjects, rows, -rng.uniform(15, 360, len(rows))), f"DRUG//{drug}//START")
    rows = np.flatnonzero(full & (rng.random(len(everyone)) < 0.35))
    events.add(rows, at(subjects, rows, -rng.uniform(15, 360, len(rows))), "RADIATION")


def _visits(
    subjects: Subjects, course: Course, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Subject row and day of every visit: regular ones, then those on the morning of a prediction_time."""
    begin = np.where(subjects.bare_record, 20.0, -rng.uniform(60, 365, len(subjects.subject_id)))
    until = np.minimum(course.last, np.where(course.started, course.start, 0.0).max(axis=1) + 400.0)
    count = np.maximum(np.ceil((until - begin) / _VISIT_EVERY), 0).astype(np.int64)
    rows = np.repeat(np.arange(len(count)), count)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    day = begin[rows] + _VISIT_EVERY * (number + 0.6 * rng.random(len(rows)))
    kept = (rng.random(len(rows)) >= _VISIT_MISSED) & (day < until[rows])
    seen = course.started & (rng.random(course.started.shape) < _BASELINE_SEEN)
    seen[:, 0] &= ~subjects.bare_record
    baseline_rows, line = np.nonzero(seen)
    baseline_day = course.start[baseline_rows, line] + PREDICTION_HOUR / 24.0
    return np.concatenate([rows[kept], baseline_rows]), np.concatenate([day[kept], baseline_day])


def _laboratories(
    events: _Events, subjects: Subjects, health: Health, course: Course, rng: np.random.Generator
) -> None:
    rows, day = _visits(subjects, course, rng)
    reserve, inflamed = health.levels(day, rows, course.end, course.step)
    ended = np.where(course.end[rows] < day[:, None], 1.0 - course.response[rows], 0.0).sum(axis=1)
    noise = rng.normal(size=(len(rows), 7))
    measured = dict(zip(_MEASURED, (rng.random((len(rows), 7)) < list(_MEASURED.values())).T, strict=True))
    when, site = at(subjects, rows, day), subjects.site[rows]
    g_per_dl, mg_per_dl = np.array(world_.SITE_HGB_G_PER_DL)[site], np.array(world_.SITE_CRP_MG_PER_DL)[site]
    hgb = 125.0 + 11.0 * reserve - 3.0 * inflamed + 3.0 * noise[:, 1]
    crp = np.exp(2.2 + 0.6 * inflamed + 0.15 * noise[:, 2])
    marker = np.exp(2.0 + 0.5 * ended + 0.4 * noise[:, 5])
    marker_code, marker_unit = np.array(world_.INDICATION_MARKER, dtype=object)[subjects.indication[rows]].T
    unit_hgb = np.where(g_per_dl, "g/dL", "g/L").astype(object)
    unit_crp = np.where(mg_per_dl, "mg/dL", "mg/L").astype(object)
    for name, code, value, unit, digits in (
        ("ALB", "LAB//ALB", 38.0 + 4.0 * reserve + 0.8 * noise[:, 0], "g/L", 1),
        ("HGB", "LAB//HGB", np.where(g_per_dl, hgb / 10.0, hgb).clip(3.0), unit_hgb, 1),
        ("CRP", "LAB//CRP", np.where(mg_per_dl, crp / 10.0, crp), unit_crp, 2),
        ("NLR", "LAB//NLR", np.exp(1.2 + 0.4 * inflamed + 0.1 * noise[:, 3]), "{ratio}", 2),
        ("LDH", "LAB//LDH", np.exp(5.4 + 0.2 * inflamed + 0.12 * noise[:, 4]), "U/L", 0),
        ("marker", marker_code, marker, marker_unit, 1),
        ("ECOG", "ECOG", (1.2 - 0.6 * reserve + 0.4 * inflamed + 0.3 * noise[:, 6]).clip(0.0, 4.0), None, 0),
    ):
        use = measured[name]
        code_used = code[use] if isinstance(code, np.ndarray) else code
        unit_used = unit[use] if isinstance(unit, np.ndarray) else unit
        events.add(rows[use], when[use], code_used, np.round(value[use], digits), unit_used)


def _therapies(events: _Events, subjects: Subjects, course: Course, rng: np.random.Generator) -> None:
    starts = np.array([f"DRUG//{drug.name}//START" for drug in DRUGS], dtype=object)
    for line in range(MAX_LINES):
        rows, drug = np.nonzero(course.regimen[:, line])
        events.add(rows, at(subjects, rows, course.start[rows, line] + 1.0), starts[drug])
        rows = np.flatnonzero(np.isfinite(course.end[:, line]))
        events.add(rows, at(subjects, rows, course.end[rows, line]), "IMAGING//PROGRESSION")
        assessed = course.start[:, line] + np.round(rng.uniform(50, 70, len(course.last)), 3)
        rows = np.flatnonzero(course.started[:, line] & (assessed < np.minimum(course.last, course.end[:, line])))
        finding = np.where(course.response[rows, line], "IMAGING//RESPONSE", "IMAGING//STABLE").astype(object)
        events.add(rows, at(subjects, rows, assessed[rows]), finding)


def write_meds(out: Path, events: pl.DataFrame, subjects: Subjects, *, seed: int) -> None:
    """Write a MEDS 0.4 dataset (https://github.com/Medical-Event-Data-Standard/meds) with the column `unit` added."""
    split = np.where(subjects.held_out, meds.held_out_split, meds.train_split)
    of_subject = pl.DataFrame({"subject_id": subjects.subject_id, "split": split.tolist()})
    for name in (meds.train_split, meds.held_out_split):
        chosen = of_subject.filter(pl.col("split") == name)
        part = events.join(chosen, on="subject_id", how="semi", maintain_order="left")
        folder = out / meds.data_subdirectory / name
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(meds.DataSchema.align(part.to_arrow()), folder / "0.parquet")
    codes = sorted(events["code"].unique().to_list())
    table = pa.table(
        {
            "code": codes,
            "description": [_describe(code) for code in codes],
            "parent_codes": pa.array([_parents(code) for code in codes], pa.list_(pa.string())),
        }
    )
    (out / "metadata").mkdir(parents=True, exist_ok=True)
    pq.write_table(meds.CodeMetadataSchema.align(table), out / meds.code_metadata_filepath)
    pq.write_table(meds.SubjectSplitSchema.align(of_subject.to_arrow()), out / meds.subject_splits_filepath)
    about = meds.DatasetMetadataSchema(
        dataset_name="ican-simulated", dataset_version=f"{world_.SIMULATOR_VERSION}-{seed}", etl_name="ican simulate",
        etl_version=str(world_.SIMULATOR_VERSION), meds_version=version("meds"), license="CC0-1.0",
    )  # fmt: skip
    (out / meds.dataset_metadata_filepath).write_text(json.dumps(about.to_dict(), indent=2) + "\n")


def _parents(code: str) -> list[str]:
    kind, _, rest = code.partition("//")
    name = rest.partition("//")[0]
    classes = {drug.name: drug.atc for drug in DRUGS} | dict(_PRIOR)
    if kind == "DRUG":
        return [f"ATC//{classes[name]}"]
    return [f"ICD10//{name.partition('.')[0]}"] if kind == "ICD10" and "." in name else []


def _describe(code: str) -> str:
    kind, _, rest = code.partition("//")
    if kind == "DRUG":
        name, _, edge = rest.partition("//")
        atc = _parents(code)[0].removeprefix("ATC//")
        return f"{edge.lower()} of {name} ({CLASS_NAME.get(atc, 'cytotoxic')})"
    return {"LAB": "laboratory result", "ICD10": "diagnosis", "IMAGING": "imaging report", "SEX": "sex"}.get(kind, "")
