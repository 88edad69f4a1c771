"""The studies of ``science.py``: what is trained on each real cohort, and which figures it should reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FOREST, LOGISTIC = ".584 (random survival forest, genes only)", ".752 (logistic, best of 20 models)"
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
    """Arguments of ``train.py``, and the figures wanted of its first outcome; the first one is compared with ridge.

    ``coverage``: the range that the prediction sets' should lie in. ``left_out``: further arguments that train without
    a part of the information.
    """

    arguments: tuple[str, ...]
    figures: tuple[Figure, ...]
    coverage: tuple[float, float] | None = None
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
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
        coverage=(0.88, 0.92),
        left_out={
            "record": ("inputs.records=false", "cohort.lines.start=null"),
            "genomics": ("inputs.modalities=[]",),
            "regimen": ("inputs.treatments=false",),
        },
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
            Figure(measure="AUROC", reach=0.755, boosting=0.738, ridge=0.752, published=LOGISTIC),
            Figure(measure="calibration error"),
        ),
        quick=QUICK[2:],
    ),
}
