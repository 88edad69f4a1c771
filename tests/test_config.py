"""Every file of configs/ makes a configuration, and a mistake ends in one clear line."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ican_ml.config import (
    CohortConfig,
    EncodingConfig,
    EvaluationConfig,
    Kind,
    LandmarksConfig,
    LinesConfig,
    Method,
    OutcomeConfig,
    PretrainingConfig,
    RunConfig,
    SplitConfig,
    TaskConfig,
)
from ican_ml.entry import typed
from ican_ml.inputs.fit import InputConfig
from ican_ml.sweep.sweeper import register
from ican_ml.targets.config import TargetsConfig
from ican_ml.training.config import LoggerConfig, TrainerConfig, TrainingConfig

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
CHOICES = sorted(
    f"{path.parent.name}={path.stem}" for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "experiment"
)
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
# What a choice needs installed, and what it leaves for the user to say.
PLUGINS = {"launcher=slurm": "submitit"}
NEEDED = {
    "cohort=mine": ["cohort.path=x"],
    "split=fold": ["split.fold=0"],
    "split=treatment": ["split.value=X"],
    "split=time": ["split.after=0.8"],
}


@pytest.fixture(autouse=True)
def _folder_of_cohorts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICAN_COHORTS", "somewhere")


def composed(*overrides: str) -> RunConfig:
    register(RunConfig)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        config = OmegaConf.to_object(compose("config", list(overrides)))
    assert isinstance(config, RunConfig)
    return config


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_every_group(choice: str) -> None:
    if choice in PLUGINS:
        pytest.importorskip(PLUGINS[choice])
    composed(choice, *NEEDED.get(choice, []))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment(experiment: str) -> None:
    config = composed(f"experiment={experiment}")
    assert config.name.startswith(experiment)
    assert config.task.outcomes


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_command_line_has_the_last_word(experiment: str) -> None:
    config = composed(f"experiment={experiment}", "split=hash", "model=wide", "name=mine", "training.epochs=2")
    assert (config.split.method, config.model.deep, config.name, config.training.epochs) == (
        Method.hash,
        False,
        "mine",
        2,
    )


def test_splits_take_dates_shares_and_every_value_in_turn() -> None:
    assert composed("split=time", "split.after=2018-01-01").split.after == "2018-01-01"
    assert composed("split=time", "split.after=0.8").split.after == "0.8"
    assert composed("split=site", "split.value=3").split.value == "3"
    assert composed("split=indication").split.value is None
    for choice, said in (("split=treatment", r"split\.value"), ("split=time", r"split\.after")):
        with pytest.raises(ValueError, match=said):
            composed(choice)


def test_no_experiment_is_the_demonstration() -> None:
    assert dataclasses.asdict(composed()) == dataclasses.asdict(composed("experiment=demo"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.learning_rat=1", "learning_rat"),
        ("training.learning_rate=abc", "'abc'"),
        ("+depth=3", "Key 'depth' not in 'RunConfig'"),
        ("cohort=mine", "missing mandatory value: path"),
        ("trainer=gpu", "trainer.accelerator: expected a GPU"),
        ("training.learning_rate=-1", "training.learning_rate: expected a positive number, got -1"),
        ("logger.mode=online", "logger.mode: expected online with logger=wandb"),
        ('cohort.lines.start="DRUG//(.+"', "cohort.lines.start: expected a regular expression, got 'DRUG//(.+'"),
    ],
)
def test_a_mistake_on_the_command_line_ends_in_one_clear_line(override: str, said: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), override, f"runs={tmp_path / 'runs'}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("train.py: ")
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_its_plugin_a_launcher_says_what_to_install(tmp_path: Path) -> None:
    none = "import sys, types; sys.modules['hydra_plugins'] = p = types.ModuleType('hydra_plugins'); p.__path__ = []"
    run = f"import runpy; sys.argv = ['train.py', 'launcher=slurm']; runpy.run_path({str(ROOT / 'train.py')!r}, None, "
    command = [sys.executable, "-c", f"{none}; sys.path.insert(0, {str(ROOT)!r}); {run}'__main__')"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "train.py: launcher=slurm needs a plugin of Hydra; to install it: pip install 'ican_ml[slurm]'\n"
    )


def test_each_trial_of_a_sweep_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig, "_instances", {}, raising=False)
    register(RunConfig)
    names = []
    for mode in ("hydra.mode=MULTIRUN", "hydra.mode=RUN"):
        for number in range(2):
            overrides = ["name=rates", mode, f"hydra.job.num={number}"]
            with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
                found = compose("config", overrides, return_hydra_config=True)
            HydraConfig.instance().set_config(found)
            names.append(typed(OmegaConf.masked_copy(found, [key for key in found if key != "hydra"])).name)
    assert names == ["rates-0", "rates-1", "rates", "rates"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RunConfig(name="../up"), "name"),
        (lambda: RunConfig(name=""), "name"),
        (lambda: EncodingConfig(backend="tpu"), "encoding.backend"),
        (lambda: SplitConfig(method=Method.fold), "split.fold"),
        (lambda: SplitConfig(method=Method.treatment), "split.value"),
        (lambda: SplitConfig(method=Method.time), "split.after"),
        (lambda: SplitConfig(tuning_fraction=1.0), "split.tuning_fraction"),
        (lambda: TaskConfig(outcomes=[]), "task.outcomes"),
        (lambda: TaskConfig(outcomes=[OutcomeConfig(name="a"), OutcomeConfig(name="a")]), "task.outcomes"),
        (lambda: EvaluationConfig(replicates=0), "evaluation.replicates"),
        (lambda: EvaluationConfig(permutations=1), "evaluation.permutations"),
        (lambda: InputConfig(max_tokens=0), "inputs.max_tokens"),
        (lambda: LinesConfig(start="DRUG//(.+"), "cohort.lines.start"),
        (lambda: LinesConfig(start="DRUG//.+"), "cohort.lines.start"),
        (lambda: LinesConfig(weight=0.0), "cohort.lines.weight"),
        (lambda: LinesConfig(weight=float("inf")), "cohort.lines.weight"),
        (lambda: LandmarksConfig(weight=float("nan")), "cohort.landmarks.weight"),
        (lambda: LandmarksConfig(per_episode=-1), "cohort.landmarks.per_episode"),
        (lambda: LandmarksConfig(horizon=1), "cohort.landmarks.horizon"),
        (lambda: RunConfig(cohort=CohortConfig(landmarks=LandmarksConfig(per_episode=1))), "cohort.landmarks"),
        (lambda: RunConfig(cohort=CohortConfig(lines=LinesConfig(start="(A)", outcome="os"))), "cohort.lines: "),
        (
            lambda: RunConfig(
                cohort=CohortConfig(lines=LinesConfig(start="(A)")),
                task=TaskConfig(outcomes=[OutcomeConfig(name="response", kind=Kind.regression)]),
            ),
            "cohort.lines: ",
        ),
        (lambda: PretrainingConfig(per_subject=-1), "cohort.pretraining.per_subject"),
        (lambda: PretrainingConfig(outcomes={"tnt": "("}), "cohort.pretraining.outcomes.tnt"),
        (lambda: RunConfig(cohort=CohortConfig(pretraining=PretrainingConfig(per_subject=1))), "pretraining.outcomes"),
        (lambda: SplitConfig(train_subjects=1), "split.train_subjects"),
        (lambda: TrainingConfig(epochs=0), "training.epochs"),
        (lambda: LoggerConfig(wandb=True, host="wandb.my-hospital.org"), "logger.host"),
        (lambda: TrainerConfig(accumulate=0), "trainer.accumulate"),
        (lambda: TargetsConfig(by="gene"), "targets.by"),
        (lambda: TargetsConfig(networks=1), "targets.networks"),
        (lambda: TargetsConfig(level=1.0), "targets.level"),
        (lambda: TrainingConfig(warmup=1.0), "training.warmup"),
        (lambda: TrainingConfig(weight_decay=-1.0), "training.weight_decay"),
        (lambda: TrainingConfig(wide_strengths=[]), "training.wide_strengths"),
    ],
)
def test_nonsense_is_refused_by_name(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]


def test_strengths_go_from_strong_to_weak_and_defaults_are_not_shared() -> None:
    assert TrainingConfig(wide_strengths=[1.0, 10.0]).wide_strengths == [10.0, 1.0]
    assert CohortConfig().simulate is not CohortConfig().simulate
