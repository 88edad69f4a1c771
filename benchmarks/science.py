"""Every real cohort against ridge, boosting and what is published, on the same folds; needs ICAN_COHORTS.

    python benchmarks/science.py                        all studies (3 hours of one core; goes on where it stopped)
    python benchmarks/science.py gdsc loris --check     some; exit code 1, and each figure that falls short by name
    python benchmarks/science.py msk_chord --left-out   without record, genomics, regimen
    python benchmarks/science.py --quick                one fold and a small network each: does it run? (minutes)

A run lies in ``runs/science-<study>``. From its held-out scores come mean and standard deviation over folds, and the
paired difference by fold with its 95% interval (Student's t; subjects are resampled where there is one split only).
A win counts only against a baseline that is as good here as where it was first measured on these folds, within .01.
Beside them: what the number of past events alone tells, what permuted outcomes leave, how often prediction sets hold
the truth. ``--left-out`` trains a smaller network anew without a part of the information at a time. Each study has its
own ``benchmarks/results/science-<study>.json``; ``science.md`` shows all of them. On two cores, two processes of one
thread each, side by side, took 62 minutes (``msk_chord``) and 115 (all others).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from record import ROOT, Record, composed, train
from scipy import stats
from studies import STUDIES, Figure, Study

from ican_ml.evaluation.bootstrap import paired_difference
from ican_ml.evaluation.metrics import auroc, calibration_error, harrell_c, per_treatment_pearson, rmse
from ican_ml.evaluation.outcome import Outcome
from ican_ml.evaluation.weighted import weighted_auroc

if TYPE_CHECKING:
    import polars as pl

Float = npt.NDArray[np.float64]
SCORERS = ("model", "ridge", "boosting")
LOWER_IS_BETTER = ("RMSE", "calibration error")
CHECKPOINTS = ("PDCD1", "CD274", "CTLA4")
PLAIN: dict[str, Callable[..., float]] = {"AUROC": auroc, "calibration error": calibration_error, "RMSE": rmse}
REPRODUCED, NOT_WORSE, AT_CHANCE = 0.01, -0.01, 0.02
SMALLER = (
    "model.members=1",
    "model.deep=false",
    "training.tree_rate=0.15",
    "evaluation.baselines=false",
    "evaluation.permutations=0",
)


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Held-out episodes of one fold: outcome, labels, and scores by scorer."""

    outcome: Outcome
    labels: Mapping[str, npt.NDArray[Any]]
    scores: Mapping[str, Float]

    def take(self, chosen: npt.NDArray[np.bool_]) -> Fold:
        """Only some of them."""
        return Fold(
            outcome=self.outcome.take(np.flatnonzero(chosen)),
            labels={name: values[chosen] for name, values in self.labels.items()},
            scores={name: values[chosen] for name, values in self.scores.items()},
        )


def value_of(measure: str, fold: Fold, scorer: str) -> float:
    """One scorer's measure on a fold."""
    outcome, score = fold.outcome, fold.scores[scorer]
    if measure == "c-index":
        return harrell_c(outcome.value, outcome.event, score, entry=outcome.entry, strata=fold.labels["indication"])
    if measure == "r per drug":
        return per_treatment_pearson(outcome.value, score, fold.labels["treatment"]).value
    return PLAIN[measure](outcome.value, score)


def difference(values: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """Mean difference by fold and its 95% interval; NaN ends for a single fold."""
    by_fold = np.subtract(values, others)
    mean = float(by_fold.mean())
    n = len(by_fold)
    half = float(stats.t.ppf(0.975, n - 1) * by_fold.std(ddof=1) / n**0.5) if n > 1 else float("nan")
    return mean, mean - half, mean + half


def measured(figure: Figure, folds: Sequence[Fold]) -> dict[str, Any]:
    """Mean and sd of every scorer, and the model's advantage over each baseline (positive = better) with interval."""
    parts = [fold.take(fold.labels[_label(figure)] == figure.part) if figure.part else fold for fold in folds]
    values = {by: [value_of(figure.measure, part, by) for part in parts] for by in SCORERS if by in folds[0].scores}
    sign = -1 if figure.measure in LOWER_IS_BETTER else 1
    found: dict[str, Any] = {
        by: {"mean": float(np.mean(each)), "sd": float(np.std(each, ddof=min(1, len(each) - 1))), "folds": each}
        for by, each in values.items()
    }
    for by in sorted(set(values) - {"model"}):
        ends = tuple(sign * np.asarray(difference(values["model"], values[by])))
        if len(parts) == 1 and figure.measure == "AUROC":
            part = parts[0]
            first, second = (weighted_auroc(part.outcome.value, part.scores[each]) for each in ("model", by))
            ends = tuple(paired_difference(first, second, part.labels["subject_id"], replicates=2000))
        found[f"over {by}"] = [ends[0], *sorted(ends[1:])] if np.isfinite(ends).all() else None
    return found


def _label(figure: Figure) -> str:
    return "therapy" if figure.part == "immunotherapy" else "indication"


def reproduced(figure: Figure, by: str, found: Mapping[str, Any]) -> str:
    """How a baseline here stands to where it was first measured: "stronger", "reproduced", "not reproduced" or ""."""
    known = getattr(figure, by)
    if known is None:
        return ""
    gain = found[by]["mean"] - known
    gain = -gain if figure.measure in LOWER_IS_BETTER else gain
    if abs(gain) <= REPRODUCED:
        return "reproduced"
    return "stronger" if gain > 0 else "not reproduced"


def faults(study: str, figures: Sequence[Figure], found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What falls short, in words."""
    short = []
    for figure in figures:
        each = found[figure.name]
        model, what = each["model"]["mean"], f"{study}, {figure.name}"
        if figure.reach is not None:
            lower = figure.measure in LOWER_IS_BETTER
            if not (model <= figure.reach if lower else model >= figure.reach):
                short.append(f"{what}: {model:.4f}, expected at {'most' if lower else 'least'} {figure.reach:g}")
            short += [
                f"{what}: {by} {each[by]['mean']:.4f} does not reproduce {getattr(figure, by):g}"
                for by in ("ridge", "boosting")
                if reproduced(figure, by, each) == "not reproduced"
            ]
        if figure.above_boosting and not each["over boosting"][1] > 0:
            short.append(f"{what}: over boosting {_interval(each['over boosting'])}, expected an interval above 0")
    first = found[figures[0].name]["over ridge"]
    if not first[1] > NOT_WORSE:
        short.append(f"{study}, {figures[0].name}: over ridge {_interval(first)}, expected its lower end above -.01")
    return short


def markdown(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """All studies as one table, and what was measured beside them."""
    head = (
        "study | figure | model | boosting | ridge | over boosting | over ridge | to reach | published | baselines here"
    )
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    notes = []
    for name, found in parts.items():
        for figure in STUDIES[name].figures:
            each = found["figures"][figure.name]
            cells = [name, figure.name, *(_mean(each[by]) for by in ("model", "boosting", "ridge"))]
            cells += [_interval(each[f"over {by}"]) for by in ("boosting", "ridge")]
            cells += ["" if figure.reach is None else f"{figure.reach:g}", figure.published]
            cells.append(
                ", ".join(f"{by} {how}" for by in ("boosting", "ridge") if (how := reproduced(figure, by, each)))
            )
            lines.append("| " + " | ".join(cells) + " |")
        notes += [f"- {name}: {note}" for note in _notes(found)]
    return "\n".join([*lines, "", *notes]) + "\n"


def _notes(found: Mapping[str, Any]) -> list[str]:
    notes = []
    if permuted := found["beside"]["permuted outcomes"]:
        notes.append(f"permuted outcomes leave {permuted['metric']} {permuted['mean']:.3f} (sd {permuted['sd']:.3f})")
    for information, by in (found["beside"]["bookkeeping alone"] or {}).items():
        told = ", ".join(f"{scorer} {value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]" for scorer, value in by.items())
        notes.append(f"{information}: {told}")
    if sets := found["beside"]["prediction sets"]:
        coverage, size = (sets["overall"]["metrics"][each]["estimate"] for each in ("coverage", "mean_size"))
        asked = f"{sets['asked_coverage']:.0%}"
        notes.append(f"sets asked to hold the truth in {asked} do in {coverage:.1%}, {size:.2f} answers each")
    for part, each in found.get("left out", {}).items():
        if part == "nothing":
            notes.append(f"a smaller network with all information {each['mean']:.4f}")
        else:
            notes.append(f"without {part} {each['mean']:.4f}, loss {_interval(each['loss'])}")
    return notes


def _mean(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:.3f} ± {found['sd']:.3f}" if len(found["folds"]) > 1 else f"{found['mean']:.3f}"


def _interval(found: Sequence[float] | None) -> str:
    return "" if found is None else f"{found[0]:+.4f} [{found[1]:+.4f}, {found[2]:+.4f}]"


def main() -> None:
    """Run, read, print, write, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", help=f"of {', '.join(STUDIES)}; default: all")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
    parser.add_argument("--left-out", action="store_true", help="train without parts of the information instead")
    parser.add_argument("--quick", action="store_true", help="one fold and little training: checks that all is finite")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.studies) - set(STUDIES)):
        parser.error(f"expected studies among {', '.join(STUDIES)}, got {', '.join(unknown)}")
    if not os.environ.get("ICAN_COHORTS"):
        sys.exit("benchmarks/science.py: expected ICAN_COHORTS to name the folder of the cohorts, got nothing")
    chosen = arguments.studies or list(STUDIES)
    if arguments.quick:
        for name in chosen:
            found = _study(name, quick=True)
            print(name, {figure: _mean(each["model"]) for figure, each in found.items()})
            if not all(np.isfinite(each[by]["mean"]) for each in found.values() for by in SCORERS):
                sys.exit(f"{name}: expected finite figures, got {found}")
        return
    short: list[str] = []
    for name in chosen:
        if arguments.left_out:
            _left_out(name)
            continue
        record, study = Record(f"science-{name}"), STUDIES[name]
        if "figures" not in record.parts:
            record.add("figures", _study(name, quick=False))
            record.add("beside", beside(ROOT / "runs" / f"science-{name}"))
        short += faults(name, study.figures, record.parts["figures"])
        short += beside_faults(name, study, record.parts["beside"])
    text = markdown({name: parts for name in STUDIES if (parts := _parts(name))})
    (ROOT / "benchmarks" / "results" / "science.md").write_text(text)
    print(text)
    print("\n".join(short) or "nothing falls short")
    sys.exit(int(arguments.check and bool(short)))


def _parts(name: str) -> dict[str, Any]:
    """What is on file of a study; empty without its figures."""
    stored = (ROOT / "benchmarks" / "results" / f"science-{name}{more}.json" for more in ("", "-left-out"))
    whole, left_out = (json.loads(path.read_text())["parts"] if path.exists() else {} for path in stored)
    return {**whole, "left out": left_out} if "figures" in whole else {}


def _study(name: str, *, quick: bool) -> dict[str, dict[str, Any]]:
    """Run it, or what is left of it, and measure every figure."""
    study = STUDIES[name]
    run = f"science-{name}{'-quick' if quick else ''}"
    folds = _run(run, [*study.arguments, *(study.quick if quick else ())], SCORERS)
    return {figure.name: measured(figure, folds) for figure in study.figures}


def _run(run: str, arguments: list[str], scorers: tuple[str, ...]) -> list[Fold]:
    """Train, or go on with it, and read the held-out scores."""
    arguments = [*arguments, f"name={run}"]
    train(*arguments)
    return _read(ROOT / "runs" / run, arguments, scorers)


def _left_out(name: str) -> None:
    """The first figure of a smaller network with all information, and its loss (with interval) without each part."""
    study, record = STUDIES[name], Record(f"science-{name}-left-out")
    figure = study.figures[0]
    for part, arguments in {"nothing": (), **study.left_out}.items() if study.left_out else ():
        if part not in record.parts:
            run = _run(f"science-{name}-{part}", [*study.arguments, *SMALLER, *arguments], ("model",))
            each = [value_of(figure.measure, fold, "model") for fold in run]
            whole = record.parts["nothing"]["folds"] if part != "nothing" else each
            record.add(part, {"mean": float(np.mean(each)), "folds": each, "loss": difference(whole, each)})


def beside(folder: Path) -> dict[str, Any]:
    """What a run's audit and prediction sets say of its first outcome."""
    audit, metrics = (json.loads((folder / f"{name}.json").read_text()) for name in ("audit", "metrics"))
    outcome = next(iter(metrics["tasks"]))
    permuted = [found for found in audit["permutations"] if found["outcome"] == outcome]
    counted = [found for found in audit["bookkeeping"] if found["outcome"] == outcome]
    return {
        "permuted outcomes": {each: permuted[0][each] for each in ("metric", "mean", "sd", "chance")}
        if permuted
        else None,
        "bookkeeping alone": counted[0]["values"] if counted else None,
        "prediction sets": metrics["tasks"][outcome]["model"].get("sets"),
    }


def beside_faults(name: str, study: Study, found: Mapping[str, Any]) -> list[str]:
    """What falls short of it, in words."""
    short = []
    if (permuted := found["permuted outcomes"]) and abs(permuted["mean"] - permuted["chance"]) > AT_CHANCE:
        chance = f"{permuted['chance']:g} +- {AT_CHANCE}"
        short.append(f"{name}: permuted outcomes give {permuted['mean']:.3f}, expected {chance}")
    if study.coverage:
        coverage = found["prediction sets"]["overall"]["metrics"]["coverage"]["estimate"]
        if not study.coverage[0] <= coverage <= study.coverage[1]:
            short.append(f"{name}: sets hold the truth in {coverage:.3f}, expected {study.coverage}")
    return short


def _read(folder: Path, arguments: list[str], scorers: tuple[str, ...]) -> list[Fold]:
    """The run's held-out scores beside outcomes and labels."""
    from ican_ml.prepare import prepare

    os.chdir(ROOT)
    prepared = prepare(composed(*arguments))
    task, outcome = next(iter(prepared.outcomes.items()))
    labels = _labels(prepared.episodes, prepared.cohort.targets)
    folds = []
    for name, split in prepared.splits.items():
        rows = split.held_out[outcome.labelled[split.held_out]]
        known = outcome.labelled[split.held_out]
        with np.load(folder / "private" / name / "scores" / "scores.npz") as stored:
            scores = {by: stored[f"{task}/{by}"][known] for by in scorers}
        folds.append(
            Fold(
                outcome=outcome.take(rows),
                labels={each: values[rows] for each, values in labels.items()},
                scores=scores,
            )
        )
    return folds


def _labels(episodes: pl.DataFrame, targets: Mapping[str, tuple[str, ...]]) -> dict[str, npt.NDArray[Any]]:
    """By episode: subject, regimen as text, indication, and whether it is immunotherapy."""
    regimens = episodes["treatment"].to_list()
    against = {drug for drug, genes in targets.items() if set(genes) & set(CHECKPOINTS)}
    return {
        "subject_id": episodes["subject_id"].to_numpy(),
        "treatment": np.array(["+".join(sorted(regimen or ())) for regimen in regimens]),
        "indication": episodes["indication"].fill_null("").to_numpy().astype(str)
        if "indication" in episodes.columns
        else np.full(len(episodes), ""),
        "therapy": np.array(["immunotherapy" if against & set(regimen or ()) else "" for regimen in regimens]),
    }


if __name__ == "__main__":
    main()
