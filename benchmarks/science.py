"""Every real cohort against ridge, boosting and what is published, on the same folds; needs ICAN_COHORTS.

    python benchmarks/science.py                        all studies (hours; goes on where it stopped)
    python benchmarks/science.py gdsc loris --check     some; exit code 1, and each figure that falls short by name
    python benchmarks/science.py --quick                one fold and a small network each: does it run? (minutes)

A run lies in ``runs/science-<study>``. From its held-out scores come mean and standard deviation over folds, and the
paired difference by fold with its 95% interval (Student's t; subjects are resampled where there is one split only).
A win counts only against a baseline that is as good here as where it was first measured on these folds, within .01.
Writes ``benchmarks/results/science.json`` and ``science.md``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from record import ROOT, Record
from scipy import stats

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
FOREST, LOGISTIC = ".584 (random survival forest, genes only)", ".752 (logistic, best of 20 models)"
PLAIN: dict[str, Callable[..., float]] = {"AUROC": auroc, "calibration error": calibration_error, "RMSE": rmse}
REPRODUCED, NOT_WORSE = 0.01, -0.01
QUICK = ("split=fold", "split.fold=0", "training.epochs=1", "evaluation.permutations=0", "evaluation.replicates=1")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measure of a study: what to reach, what the baselines reached where they were first measured.

    ``part`` is an indication, or "immunotherapy"; "" = all episodes. ``above_boosting``: the interval must lie above 0.
    """

    measure: str
    part: str = ""
    reach: float | None = None
    boosting: float | None = None
    ridge: float | None = None
    published: str = ""
    above_boosting: bool = False

    @property
    def name(self) -> str:
        return f"{self.measure}, {self.part}" if self.part else self.measure


@dataclass(frozen=True, kw_only=True)
class Study:
    """Arguments of ``train.py``, and the figures wanted; the first one is compared with ridge."""

    arguments: tuple[str, ...]
    figures: tuple[Figure, ...]
    quick: tuple[str, ...] = field(default=QUICK)


STUDIES = {
    "msk_chord": Study(
        arguments=("experiment=msk_chord", "split=folds"),
        figures=(
            Figure(measure="AUROC", reach=0.775, boosting=0.765, ridge=0.753, above_boosting=True),
            Figure(measure="AUROC", part="immunotherapy", reach=0.740, boosting=0.729, ridge=0.718),
            Figure(measure="calibration error", reach=0.02),
            *(Figure(measure="AUROC", part=part) for part in ("NSCLC", "BRCA", "CRC")),
        ),
        quick=(*QUICK, "model.trees=20"),
    ),
    "msk_survival": Study(
        arguments=("experiment=msk_survival",),
        figures=(
            Figure(measure="c-index"),
            Figure(measure="c-index", part="NSCLC", reach=0.778, boosting=0.767, ridge=0.758, published=FOREST),
            Figure(measure="c-index", part="BRCA", reach=0.862, boosting=0.854, ridge=0.841),
            Figure(measure="c-index", part="CRC", reach=0.803, boosting=0.793, ridge=0.785),
        ),
        quick=(*QUICK, "model.trees=20"),
    ),
    "tcga_survival": Study(
        arguments=("experiment=tcga_survival",),
        figures=(
            Figure(measure="c-index", reach=0.700, boosting=0.671, ridge=0.688),
            Figure(measure="c-index", part="BLCA", boosting=0.620, ridge=0.660, published=".624 (MCAT, with slides)"),
            Figure(measure="c-index", part="COADREAD", boosting=0.652, ridge=0.649),
            Figure(measure="c-index", part="GBMLGG", boosting=0.872, ridge=0.847, published=".817 (MCAT, with slides)"),
            Figure(measure="c-index", part="KIRC", boosting=0.707, ridge=0.724),
            Figure(measure="c-index", part="LUAD", boosting=0.612, ridge=0.647, published=".620 (MCAT, with slides)"),
            Figure(measure="c-index", part="STAD", boosting=0.566, ridge=0.599),
        ),
        quick=(*QUICK, "model.trees=20"),
    ),
    "gdsc": Study(
        arguments=("experiment=gdsc",),
        figures=(
            Figure(measure="r per drug", reach=0.510, boosting=0.454, ridge=0.483),
            Figure(measure="RMSE", boosting=1.354, ridge=1.343),
        ),
    ),
    "gdsc_pairs": Study(
        arguments=("experiment=gdsc", "split.fold_column=fold_random", "split.by_subject=false"),
        figures=(
            Figure(measure="RMSE", reach=0.90, boosting=0.964, ridge=1.548),
            Figure(measure="r per drug", boosting=0.776, ridge=0.405),
        ),
    ),
    "loris": Study(
        arguments=("experiment=loris",),
        figures=(
            Figure(
                measure="AUROC",
                reach=0.755,
                boosting=0.738,
                ridge=0.752,
                published=".752 (logistic, best of 20 models)",
            ),
            Figure(measure="calibration error"),
        ),
        quick=QUICK[2:],
    ),
}


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
    for by in set(values) - {"model"}:
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


def markdown(parts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """All studies as one table."""
    head = (
        "study | figure | model | boosting | ridge | over boosting | over ridge | to reach | published | baselines here"
    )
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    for name, found in parts.items():
        for figure in STUDIES[name].figures:
            each = found[figure.name]
            cells = [name, figure.name, *(_mean(each[by]) for by in ("model", "boosting", "ridge"))]
            cells += [_interval(each[f"over {by}"]) for by in ("boosting", "ridge")]
            cells += ["" if figure.reach is None else f"{figure.reach:g}", figure.published]
            cells.append(
                ", ".join(f"{by} {how}" for by in ("boosting", "ridge") if (how := reproduced(figure, by, each)))
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:.3f} ± {found['sd']:.3f}" if len(found["folds"]) > 1 else f"{found['mean']:.3f}"


def _interval(found: Sequence[float] | None) -> str:
    return "" if found is None else f"{found[0]:+.4f} [{found[1]:+.4f}, {found[2]:+.4f}]"


def main() -> None:
    """Run, read, print, write, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", help=f"of {', '.join(STUDIES)}; default: all")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
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
    record, short = Record("science"), []
    for name in chosen:
        if name not in record.parts:
            record.add(name, _study(name, quick=False))
        short += faults(name, STUDIES[name].figures, record.parts[name])
    table = markdown(record.parts)
    record.path.with_suffix(".md").write_text(table)
    print(table)
    print("\n".join(short) or "nothing falls short")
    sys.exit(int(arguments.check and bool(short)))


def _study(name: str, *, quick: bool) -> dict[str, dict[str, Any]]:
    """Run it, or what is left of it, and measure every figure."""
    study = STUDIES[name]
    run = f"science-{name}{'-quick' if quick else ''}"
    arguments = [*study.arguments, f"name={run}", *(study.quick if quick else ())]
    subprocess.run([sys.executable, "train.py", *arguments], cwd=ROOT, check=True, stdout=sys.stderr)
    folds = _read(ROOT / "runs" / run, arguments)
    return {figure.name: measured(figure, folds) for figure in study.figures}


def _read(folder: Path, arguments: list[str]) -> list[Fold]:
    """The run's held-out scores beside outcomes and labels."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from ican_ml.config import RunConfig
    from ican_ml.pipeline import prepare

    os.chdir(ROOT)
    ConfigStore.instance().store(name="run_config", node=RunConfig)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config: Any = OmegaConf.to_object(compose("config", overrides=arguments))
    prepared = prepare(config)
    ((task, outcome),) = prepared.outcomes.items()
    labels = _labels(prepared.episodes, prepared.cohort.targets)
    folds = []
    for name, split in prepared.splits.items():
        rows = split.held_out[outcome.labelled[split.held_out]]
        known = outcome.labelled[split.held_out]
        with np.load(folder / "private" / name / "scores" / "scores.npz") as stored:
            scores = {by: stored[f"{task}/{by}"][known] for by in SCORERS}
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
