"""The configuration of a run: typed dataclasses that Hydra fills from ``configs/`` and the command line.

A wrong type or an unknown name is refused by the dataclass schema, a nonsense value by ``__post_init__``.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import cast, get_args

from ican_ml.encoding.backends import Backend
from ican_ml.inputs.fit import InputConfig
from ican_ml.model.patient_transformer import ModelConfig
from ican_ml.sweep.trial import TrialConfig
from ican_ml.targets.config import TargetsConfig
from ican_ml.training.config import LoggerConfig, TrainerConfig, TrainingConfig

_FILE = "config.json"


class Kind(Enum):
    """Kinds of outcome."""

    binary = "binary"
    survival = "survival"
    regression = "regression"


class Method(Enum):
    """Ways to split: by the file's ``split`` column, one fold held out, every fold in turn, by subject hash, one
    indication, site or drug held out, or by time."""

    file = "file"
    fold = "fold"
    folds = "folds"
    hash = "hash"
    indication = "indication"
    site = "site"
    treatment = "treatment"
    time = "time"


@dataclass(kw_only=True, slots=True)
class SimulateConfig:
    """Simulate the cohort when ``cohort.path`` does not exist; 0 subjects = never."""

    subjects: int = 0
    seed: int = 7


@dataclass(kw_only=True, slots=True)
class LinesConfig:
    """Further training episodes: every line of therapy in the records of training subjects.

    Attributes
    ----------
    start
        Regular expression of the codes that start a drug, its name in the first group; null = none.
    window, horizon, outcome, time
        See :mod:`ican_ml.records.lines`.
    weight
        What a line counts in the loss beside an episode.
    """

    start: str | None = None
    window: int = 28
    horizon: int = 180
    outcome: str = "response"
    time: str = "tnt"
    weight: float = 0.5

    def __post_init__(self) -> None:
        if self.window < 0 or self.horizon < 1:
            raise ValueError(
                f"cohort.lines: expected a window of at least 0 and a horizon of at least 1 day, got {self.window} and "
                f"{self.horizon}"
            )
        _check_weight("cohort.lines.weight", self.weight)
        if self.start is None:
            return
        try:
            groups = re.compile(self.start).groups
        except re.error as error:
            raise ValueError(
                f"cohort.lines.start: expected a regular expression, got {self.start!r} ({error})"
            ) from None
        if groups != 1:
            raise ValueError(f"cohort.lines.start: expected one group, the drug's name, got {self.start!r}")


@dataclass(kw_only=True, slots=True)
class LandmarksConfig:
    """Further training episodes: those of training subjects, asked again later in their follow-up (survival).

    Attributes
    ----------
    per_episode
        How often; 0 = never.
    horizon
        See :mod:`ican_ml.training.landmarks`.
    weight
        What a landmark counts in the loss beside an episode.
    """

    per_episode: int = 0
    horizon: int = 1500
    weight: float = 0.5

    def __post_init__(self) -> None:
        if self.per_episode < 0:
            raise ValueError(f"cohort.landmarks.per_episode: expected 0 or more, got {self.per_episode}")
        if self.horizon < 2:
            raise ValueError(f"cohort.landmarks.horizon: expected at least 2 days, got {self.horizon}")
        _check_weight("cohort.landmarks.weight", self.weight)


@dataclass(kw_only=True, slots=True)
class PretrainingConfig:
    """Episodes made of the records in place of the cohort's own.

    Attributes
    ----------
    per_subject
        How many; 0 = the cohort's own episodes.
    outcomes
        Name to a regular expression of codes: see :mod:`ican_ml.training.pretraining`.
    """

    per_subject: int = 0
    outcomes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.per_subject < 0:
            raise ValueError(f"cohort.pretraining.per_subject: expected 0 or more, got {self.per_subject}")
        for name, pattern in self.outcomes.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"cohort.pretraining.outcomes.{name}: expected a regular expression, got {pattern!r} ({error})"
                ) from None


@dataclass(kw_only=True, slots=True)
class CohortConfig:
    """Which cohort, and which of its families of episodes (its ``task`` column; null = it has only one).

    ``indications``: only these; null = all.
    """

    path: str = "???"
    family: str | None = None
    indications: list[str] | None = None
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    lines: LinesConfig = field(default_factory=LinesConfig)
    landmarks: LandmarksConfig = field(default_factory=LandmarksConfig)
    simulate: SimulateConfig = field(default_factory=SimulateConfig)


@dataclass(kw_only=True, slots=True)
class OutcomeConfig:
    """An outcome by the name of its column (or the stem of ``<name>_time`` and ``<name>_event``), and its kind."""

    name: str = "???"
    kind: Kind = Kind.binary


@dataclass(kw_only=True, slots=True)
class TaskConfig:
    """Outcomes learned together; the first is the headline."""

    outcomes: list[OutcomeConfig] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [outcome.name for outcome in self.outcomes]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"task.outcomes: expected one or more different outcomes, got {names}")


@dataclass(kw_only=True, slots=True)
class SplitConfig:
    """Who is trained on, who decides when to stop, who is held out.

    Attributes
    ----------
    fold_column, fold
        For ``fold`` and ``folds``; ``fold`` names the one held out.
    by_subject
        Insist that a subject lies in one fold. False allows folds of (subject, treatment) pairs.
    tuning_fraction, held_out_fraction
        Shares of subjects, by a hash of subject and seed.
    value
        For ``indication``, ``site`` and ``treatment``: the one held out; a treatment is a drug, with every regimen that
        holds it. Null: every indication, or site, in turn.
    after
        For ``time``: rows at or after this date are held out; or the share of rows that lie before.
    train_subjects
        Train and tune on so many subjects at most, drawn by the seed: for learning curves. Null: on all.
    """

    method: Method = Method.file
    fold_column: str = "fold"
    fold: int | None = None
    by_subject: bool = True
    tuning_fraction: float = 0.1
    held_out_fraction: float = 0.2
    value: str | None = None
    after: str | None = None
    train_subjects: int | None = None

    def __post_init__(self) -> None:
        if self.train_subjects is not None and self.train_subjects < 2:
            raise ValueError(f"split.train_subjects: expected at least 2, got {self.train_subjects}")
        for name in ("tuning_fraction", "held_out_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"split.{name}: expected a share between 0 and 1, got {getattr(self, name)}")
        if self.method is Method.fold and self.fold is None:
            raise ValueError("split.fold: expected the number of the fold to hold out, got nothing; set split.fold=0")
        if self.method is Method.treatment and self.value is None:
            raise ValueError("split.value: expected the drug to hold out, got nothing; set split.value=<drug>")
        if self.method is Method.time and self.after is None:
            raise ValueError("split.after: expected a date or a share, got nothing; set split.after=2018-01-01 or 0.8")


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    """Bootstrap replicates of the intervals, the baselines to stand beside the model, and the audit.

    ``permutations``: how often outcomes are permuted and the linear path fitted again to look for leaks; 0 = never.
    """

    replicates: int = 300
    baselines: bool = True
    permutations: int = 3

    def __post_init__(self) -> None:
        if self.replicates < 1:
            raise ValueError(f"evaluation.replicates: expected at least 1, got {self.replicates}")
        if self.permutations < 0 or self.permutations == 1:
            raise ValueError(f"evaluation.permutations: expected 0 or at least 2, got {self.permutations}")


@dataclass(kw_only=True, slots=True)
class EncodingConfig:
    """Which backend runs the sparse operators: ``cpu``, ``cuda``, ``reference``, or ``auto``, where the data lies."""

    backend: str = "auto"

    def __post_init__(self) -> None:
        if self.backend not in get_args(Backend):
            raise ValueError(f"encoding.backend: expected one of {', '.join(get_args(Backend))}, got {self.backend!r}")

    @property
    def choice(self) -> Backend:
        """The checked name."""
        return cast("Backend", self.backend)


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Everything a run depends on. ``discover``: also rank targets and biomarkers (minutes to hours); ``trial``: set by
    a sweep.
    """

    name: str = "default"
    runs: str = "runs"
    seed: int = 7
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    cohort: CohortConfig = field(default_factory=CohortConfig)
    task: TaskConfig = field(default_factory=lambda: TaskConfig(outcomes=[OutcomeConfig(name="response")]))
    split: SplitConfig = field(default_factory=SplitConfig)
    inputs: InputConfig = field(default_factory=InputConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    discover: bool = False
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    trial: TrialConfig = field(default_factory=TrialConfig)

    def __post_init__(self) -> None:
        if not self.name or any(c in self.name for c in "/\\") or self.name.startswith("."):
            raise ValueError(f"name: expected a plain folder name, got {self.name!r}")
        kinds = {outcome.name: outcome.kind for outcome in self.task.outcomes}
        lines, pretraining = self.cohort.lines, self.cohort.pretraining
        survival = {name for name, kind in kinds.items() if kind is Kind.survival}
        if pretraining.per_subject and not (survival and survival == set(pretraining.outcomes)):
            raise ValueError(
                f"cohort.pretraining.outcomes: expected the survival outcomes of the task ({_named(kinds)}), got "
                f"{', '.join(pretraining.outcomes) or 'none'}; name them there, or, for the cohort's own episodes, set "
                "cohort.pretraining.per_subject=0"
            )
        wanted = {lines.outcome: Kind.binary, lines.time: Kind.survival}
        if lines.start is not None and not any(kinds.get(name) is kind for name, kind in wanted.items()):
            raise ValueError(
                f"cohort.lines: expected a binary outcome {lines.outcome!r} or a survival outcome {lines.time!r} in "
                f"the task, got {_named(kinds)}; name them in cohort.lines.outcome and cohort.lines.time, or set "
                "cohort.lines.start=null"
            )
        if self.cohort.landmarks.per_episode and Kind.survival not in kinds.values():
            raise ValueError(
                f"cohort.landmarks: expected a survival outcome in the task ({_named(kinds)}), got none; set "
                "cohort.landmarks.per_episode=0"
            )


def _named(kinds: dict[str, Kind]) -> str:
    return ", ".join(f"{name}: {kind.value}" for name, kind in kinds.items())


def _check_weight(name: str, weight: float) -> None:
    if not (weight > 0 and math.isfinite(weight)):
        raise ValueError(f"{name}: expected a positive number, got {weight}")


def write_config(config: RunConfig, private: Path) -> None:
    """Keep what a run was asked to do, with the cohort's whole path, beside its results."""
    document = asdict(config)
    document["cohort"]["path"] = str(Path(config.cohort.path).absolute())
    (private / _FILE).write_text(json.dumps(document, indent=1, default=lambda kind: kind.value) + "\n")


def read_config(run: Path) -> RunConfig:
    """What a run was asked to do; its folder may have moved.

    Raises
    ------
    ValueError
        If the folder is none of a run.
    """
    from omegaconf import OmegaConf

    path = run / "private" / _FILE
    if not path.exists():
        raise ValueError(f"expected the folder of a run, with private/{_FILE}, got {run.name!r}")
    merged = OmegaConf.merge(OmegaConf.structured(RunConfig), json.loads(path.read_text()))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, RunConfig)
    return replace(config, name=run.absolute().name, runs=str(run.absolute().parent))
