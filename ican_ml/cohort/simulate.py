"""The simulated cohort, version 1: a cohort in format ``ican-cohort/1`` whose best reachable result is known.

In: a seed and a number of subjects. Out: a folder with omics, a MEDS record, episodes, treatments and
``truth.parquet`` (layout: `ican_ml.cohort.simulate_truth`).

The mechanism of response (symbols: i episode, d drug, g gene, k ATC class)::

    A_ig  = 1 - (1 - mutated_ig) (1 - expit(10 (log2ratio_ig - 0.55)))   target altered: mutated or amplified
    E_ig  = expit(2.0 z_ig + 2.2)                                        target expressed: z of log relative abundance
    S_id  = max over targets g of d of A_ig E_ig                         dependence of the tumour on what d inhibits
            x (1 - 0.6 [a resistance gene of d's class k is mutated])
    S_i   = 1 - prod over drugs of the regimen (1 - S_id)                independent action of combined drugs
    F_i   = 0.6 reserve - 0.5 inflammation + 0.2 (their trends a year)   fitness at prediction_time, seen in
                                                                         ALB, HGB, ECOG, CRP, NLR, LDH
    logit P(response_i) = -1.4 + 3.8 S_i expit(2 F_i + 1.5) + 0.45 F_i
            - 0.08 prior courses - 0.1 (line - 1) + indication + mean over the regimen of a drug's own effect

A drug does little for a tumour that does not depend on its target, and even a matched drug fails a patient who is too
frail and inflamed to be treated: response needs omics, record and drug together. Death has the log hazard
prognostic genes + 0.35 frailty - 0.8 response + 0.25 (line - 1); observation ends at the study's end or at random.

What keeps the oracle out of reach, as in practice: reserve and inflammation are seen through noisy laboratories with
missed visits and site-specific units, abundance through Poisson counts, two assays measure different genes, a few
subjects miss a modality or have a record that begins with the first line. One subject in ten is biopsied again; the
second sample may show a resistance mutation acquired under the first line, and some second samples lie in the future.

The signal is frozen: the golden digest in the tests changes only together with `SIMULATOR_VERSION`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import polars as pl
import scipy.sparse as sp
from numpy.typing import NDArray

from ican_ml.cohort import simulate_world as world_
from ican_ml.cohort.simulate_course import Course, draw_health, simulate_course
from ican_ml.cohort.simulate_omics import Tumours, draw_counts, simulate_tumours
from ican_ml.cohort.simulate_records import PREDICTION_HOUR, Subjects, at, simulate_records, write_meds
from ican_ml.cohort.simulate_truth import Truth, make_truth, oracle_auroc, read_truth, write_truth
from ican_ml.cohort.simulate_world import DRUGS, INDICATIONS, SIMULATOR_VERSION, SITES, World, build_world

__all__ = ["SimulationSummary", "Truth", "oracle_auroc", "read_truth", "simulate"]

Progress = Callable[[str, int, int], None]
_STEPS = ("tumours", "courses", "records", "omics files", "tables")
_MISSING = {"mutation": 0.01, "cnv": 0.01, "expression": 0.015}
_HELD_OUT = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationSummary:
    """Figures of a simulated cohort; oracles are AUROC on the held-out episodes."""

    subjects: int
    episodes: int
    events: int
    held_out_episodes: int
    response_rate: float
    oracle_auroc: float
    oracle_auroc_omics_only: float
    oracle_auroc_record_only: float

    def table(self) -> dict[str, int | float]:
        """Figures by name, AUROC and rates rounded to four decimals."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def simulate(out: Path, *, subjects: int = 3000, seed: int = 7, progress: Progress | None = None) -> SimulationSummary:
    """Simulate a cohort into the folder `out`, which is made; the same arguments give the same cohort.

    Parameters
    ----------
    out : folder of the cohort; must not hold one already
    subjects : at least 40, so that both splits see both outcomes
    seed : non-negative
    progress : called as (what has begun, steps done, steps in all)

    Raises
    ------
    ValueError
        If `subjects` or `seed` is out of range, or `out` holds files.
    """
    if subjects < 40 or seed < 0:
        raise ValueError(f"expected subjects >= 40 and seed >= 0, got subjects={subjects}, seed={seed}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"expected a new or empty folder, got {out.name!r} with contents: remove it or choose another")
    tell = progress or (lambda what, done, total: None)
    children = np.random.SeedSequence([2026, SIMULATOR_VERSION, seed]).spawn(8)
    stream = [np.random.default_rng(child) for child in children]
    world = build_world()
    tell(_STEPS[0], 0, len(_STEPS))
    who, horizon = _subjects(subjects, seed, stream[0])
    tumours = simulate_tumours(world, who.indication, list(children[1:2]) + children[2].spawn(2))
    tell(_STEPS[1], 1, len(_STEPS))
    health = draw_health(subjects, stream[3])
    course = simulate_course(world, tumours, health, who.indication, horizon, stream[4])
    tell(_STEPS[2], 2, len(_STEPS))
    events = simulate_records(who, health, course, stream[5])
    tell(_STEPS[3], 3, len(_STEPS))
    (out / "omics").mkdir(parents=True, exist_ok=True)
    _write_omics(out / "omics", world, tumours, who, course, stream[6])
    tell(_STEPS[4], 4, len(_STEPS))
    write_meds(out / "records", events, who, seed=seed)
    episodes, truth = _episodes(who, course), _truth(world, who, course, stream[7])
    episodes.write_parquet(out / "episodes.parquet")
    write_truth(out / "truth.parquet", truth, episodes)
    _write_treatments(out / "treatments.parquet")
    summary = _summarise(subjects, len(events), episodes, truth)
    _write_description(out / "cohort.json", seed, summary)
    tell("done", len(_STEPS), len(_STEPS))
    return summary


def _subjects(n: int, seed: int, rng: np.random.Generator) -> tuple[Subjects, NDArray[np.float64]]:
    """Subjects, and the days from each one's first line to the end of the study."""
    subject_id = 100_000_000 + np.cumsum(rng.integers(1, 250, n))
    indication = rng.choice(len(INDICATIONS), n, p=world_.INDICATION_WEIGHT)
    entry = np.datetime64("2013-01-01", "us") + rng.integers(0, 3285, n).astype("timedelta64[D]")
    age = rng.normal(64.0, 11.0, n).clip(22.0, 92.0)
    female_rate = np.array([0.45, 0.99, 0.46, 0.44, 0.25])[indication]
    point = [int(hashlib.sha256(f"{seed}:{subject}".encode()).hexdigest()[:12], 16) / 16**12 for subject in subject_id]
    who = Subjects(
        subject_id=subject_id,
        indication=indication,
        site=rng.choice(len(SITES), n, p=world_.SITE_WEIGHT),
        female=rng.random(n) < female_rate,
        birth=entry - np.round(age * 365.25).astype("timedelta64[D]"),
        entry=entry,
        bare_record=rng.random(n) < 0.02,
        held_out=np.array(point) < _HELD_OUT,
    )
    horizon = (np.datetime64("2023-12-31", "D") - entry.astype("datetime64[D]")).astype(np.float64)
    return who, horizon


def _write_omics(
    out: Path, world: World, tumours: Tumours, who: Subjects, course: Course, rng: np.random.Generator
) -> None:
    """One h5ad for each modality. First biopsies, then second ones, each ordered by subject."""
    n = len(who.subject_id)
    again = np.flatnonzero(np.isfinite(course.second_sample))
    rows = np.concatenate([np.arange(n), again])
    second = np.arange(len(rows)) >= n
    day = np.concatenate([-np.floor(rng.uniform(8, 200, n)), course.second_sample[again]])
    date = at(who, rows, np.floor(day)).astype("datetime64[D]").astype(str)
    date = np.where((rng.random(len(rows)) < 0.05) & ~second, "", date)
    mutation = tumours.mutation[rows]
    gained = np.flatnonzero(second & (course.acquired[rows] >= 0))
    mutation[gained, course.acquired[rows[gained]]] = True
    panel = np.array(world_.SITE_PANEL)[who.site[rows]]
    mutation &= np.where((panel == "wide")[:, None], world.panels["wide"], world.panels["focused"])
    genes = np.asarray(world.genes, dtype=object)
    for name, rate in _MISSING.items():
        missing = (rng.random(n) < rate)[rows]
        if name == "expression":
            missing = missing | (second & (rng.random(len(rows)) < 0.5))
        kept = np.flatnonzero(~missing)
        obs = {"subject_id": who.subject_id[rows[kept]], "sample_time": date[kept]}
        if name == "mutation":
            values, kind, features = mutation[kept].astype(np.float32), "binary", genes[world.mutation]
            obs["panel"] = panel[kept]
        elif name == "cnv":
            values, kind, features = tumours.cnv[rows[kept]], "continuous", genes[world.cnv]
        else:
            values, kind, features = draw_counts(tumours.abundance[rows[kept]], rng), "count", genes
        index = [f"{who.subject_id[rows[k]]}-{1 + int(second[k])}" for k in kept]
        var = pd.DataFrame({"gene": features}, index=pd.Index(features, name="feature_id"))
        if name == "mutation":
            for assay, measured in world.panels.items():
                var[f"panel:{assay}"] = measured
        data = anndata.AnnData(
            X=sp.csr_matrix(values), obs=pd.DataFrame(obs, index=pd.Index(index, name="sample_id")), var=var
        )
        data.uns["ican"] = {"kind": kind}
        data.write_h5ad(out / f"{name}.h5ad", compression="lzf")


def _episodes(who: Subjects, course: Course) -> pl.DataFrame:
    subject, line = np.nonzero(course.started)
    names = [drug.name for drug in DRUGS]
    start = course.start[subject, line]
    died = course.death[subject] <= course.last[subject]
    return pl.DataFrame(
        {
            "subject_id": who.subject_id[subject],
            "prediction_time": pl.Series(at(who, subject, start + PREDICTION_HOUR / 24.0).astype(np.int64)).cast(
                pl.Datetime("us")
            ),
            "task": ["response"] * len(subject),
            "treatment": [[names[d] for d in np.flatnonzero(row)] for row in course.regimen[subject, line]],
            "indication": [INDICATIONS[i] for i in who.indication[subject]],
            "line": (line + 1).astype(np.int16),
            "site": [SITES[i] for i in who.site[subject]],
            "split": np.where(who.held_out[subject], "held_out", "train").tolist(),
            "response": course.response[subject, line],
            "os_time": (np.ceil(course.last[subject]) - start).astype(np.float32),
            "os_event": died,
        }
    )


def _truth(world: World, who: Subjects, course: Course, rng: np.random.Generator) -> Truth:
    subject, line = np.nonzero(course.started)
    return make_truth(
        sensitivity=course.sensitivity[subject, line],
        regimen=course.regimen[subject, line],
        fitness=course.fitness[subject, line],
        record_term=course.record_term[subject, line],
        drug_effect=world.drug_effect,
        indication=who.indication[subject],
        rng=rng,
    )


def _write_treatments(path: Path) -> None:
    pl.DataFrame(
        {
            "drug": [drug.name for drug in DRUGS],
            "targets": [list(drug.targets) for drug in DRUGS],
            "atc": [drug.atc for drug in DRUGS],
        }
    ).write_parquet(path)


def _summarise(subjects: int, events: int, episodes: pl.DataFrame, truth: Truth) -> SimulationSummary:
    response = episodes["response"].to_numpy()
    held_out = np.flatnonzero((episodes["split"] == "held_out").to_numpy())
    return SimulationSummary(
        subjects=subjects,
        episodes=len(episodes),
        events=events,
        held_out_episodes=len(held_out),
        response_rate=float(response.mean()),
        oracle_auroc=oracle_auroc(response, truth.response_probability, held_out),
        oracle_auroc_omics_only=oracle_auroc(response, truth.omics_probability, held_out),
        oracle_auroc_record_only=oracle_auroc(response, truth.record_probability, held_out),
    )


def _write_description(path: Path, seed: int, summary: SimulationSummary) -> None:
    description = {
        "format": "ican-cohort/1",
        "name": "simulated",
        "description": "simulated cancer cohort: tumour omics, health records, lines of therapy and planted truth",
        "license": "CC0-1.0",
        "source_timezone": "Europe/Helsinki",
        "clocks": {"os": "prediction_time"},
        "simulator": {"version": SIMULATOR_VERSION, "seed": seed, "subjects": summary.subjects},
        "figures": summary.table(),
    }
    path.write_text(json.dumps(description, indent=2) + "\n")
