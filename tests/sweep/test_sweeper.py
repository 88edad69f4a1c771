"""``python train.py -m sweep=response``: Hydra's own command line, up to the trials that it runs."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from ican_ml.cli import main as ican
from ican_ml.config import RunConfig
from ican_ml.sweep.storage import default_url, open_study
from ican_ml.sweep.sweeper import FILE, StudySweeper, register
from ican_ml.sweep.trial import Report, TrialConfig, run_trial

ROOT = Path(__file__).resolve().parents[2]
SPACE = ("training.learning_rate=tag(log, interval(1e-4, 1e-2))", "model.width=choice(16, 32)")
Run = Callable[..., float | None]


def _task(objective: Callable[[RunConfig, Report], float]) -> Callable[[DictConfig], float | None]:
    """What train.py does, with another fit."""

    def task(composed: DictConfig) -> float | None:
        config = OmegaConf.to_object(composed)
        assert isinstance(config, RunConfig)
        root = config.trial.root(Path(config.runs))
        return run_trial(config.trial, lambda report: objective(config, report), root=root)

    return task


def _loss(config: RunConfig, report: Report) -> float:
    loss = abs(config.training.learning_rate - 1e-3) + config.model.width / 1000
    report(1, loss, "epoch 1")
    return loss


@pytest.fixture
def sweep(tmp_path: Path, empty_database: Path) -> Iterator[Run]:
    """Run a sweep of `_task` in this process, without reading the command line."""
    register(RunConfig)
    (tmp_path / "runs" / "response").mkdir(parents=True)
    shutil.copy(empty_database, tmp_path / "runs" / "response")

    def run(*arguments: str, objective: Callable[[RunConfig, Report], float] = _loss) -> float | None:
        with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
            hydra = GlobalHydra.instance().hydra
            assert isinstance(hydra, Hydra)
            told = [f"runs={tmp_path / 'runs'}", "sweep=response", *arguments]
            found: float | None = hydra.multirun("config", _task(objective), told, with_log_configuration=False)
            return found

    yield run
    for handler in list(logging.getLogger("ican_sweep").handlers):
        logging.getLogger("ican_sweep").removeHandler(handler)
        handler.close()


def _fixed() -> list[str]:
    """Fix all of the configured space but the width."""
    names = OmegaConf.load(ROOT / "configs" / "sweep" / "response.yaml").hydra.sweeper.params
    return [f"{name}={96 if name == 'training.batch_size' else 0.1}" for name in names if name != "model.width"]


def _narrow(*arguments: str) -> list[str]:
    kept = [line for line in _fixed() if not line.startswith("training.learning_rate")]
    return [*kept, *SPACE, *arguments]


def test_a_sweep_runs_reports_and_goes_on(sweep: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = sweep(*_narrow("hydra.sweeper.trials=4", "split=hash", "training.epochs=7"))
    folder = tmp_path / "runs" / "response"
    study = open_study(default_url(folder), "response")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    assert best == study.best_value
    told = capsys.readouterr().err
    assert told.count("  trial ") == 4
    assert f"best: trial {study.best_trial.number}, tuning loss {best:.5f}; learning_rate=" in told
    assert f"ican sweep-report {folder}" in told

    sweep(*_narrow("hydra.sweeper.trials=5", "split=hash", "training.epochs=7"))
    assert "study response: 4 of 5 trials finished" in capsys.readouterr().err
    assert len(study.trials) == 5

    ican(["sweep-report", str(folder), "--experiment", str(tmp_path / "configs" / "experiment" / "tuned.yaml")])
    told = capsys.readouterr().out
    assert "what mattered: " in told
    assert "python train.py experiment=tuned" in told
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 3, "no losses by epoch: there was one epoch"
    assert str(tmp_path) not in page
    best_trial, tuned = study.best_trial, tmp_path / "configs" / "experiment" / "tuned.yaml"
    config = _composed_with(tuned, tmp_path)
    assert config.name == "tuned"
    assert config.training.learning_rate == best_trial.params["training.learning_rate"]
    assert config.model.width == best_trial.params["model.width"]
    assert (config.split.method.value, config.training.epochs, config.model.members) == ("hash", 7, 2)
    assert config.model.dropout == 0.1
    assert (folder / "response_best.yaml").read_text() == tuned.read_text().replace(
        "name: tuned", "name: response_best"
    )
    with pytest.raises(SystemExit, match="--force replaces it"):
        ican(["sweep-report", str(folder), "--experiment", str(tuned)])


def _composed_with(experiment: Path, tmp_path: Path) -> RunConfig:
    """The configuration under a copy of configs/ that has this experiment."""
    copy = tmp_path / f"copy-{experiment.stem}"
    for path in (ROOT / "configs").rglob("*.yaml"):
        to = copy / path.relative_to(ROOT / "configs")
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(path.read_text())
    (copy / "experiment" / experiment.name).write_text(experiment.read_text())
    with initialize_config_dir(version_base="1.3", config_dir=str(copy)):
        config = OmegaConf.to_object(compose("config", [f"experiment={experiment.stem}"]))
    assert isinstance(config, RunConfig)
    return config


def test_groups_are_searched_and_written_as_groups(sweep: Run, tmp_path: Path) -> None:
    fixed = [*(line for line in _fixed()), "model.width=16"]
    sweep(*fixed, "model=choice(base, large)", "hydra.sweeper.trials=2", "experiment=sanity")
    ican(["sweep-report", str(tmp_path / "runs" / "response")])
    path = tmp_path / "runs" / "response" / "response_best.yaml"
    written = OmegaConf.load(path)
    study = open_study(default_url(path.parent), "response")
    assert written.defaults == ["sanity", {"override /model": study.best_trial.params["model"]}, "_self_"]
    config = _composed_with(path, tmp_path)
    assert (config.cohort.simulate.subjects, config.model.width) == (240, 16)
    assert config.model.omics_layers == {"base": 1, "large": 2}[study.best_trial.params["model"]]


def test_failures_are_told_and_the_sweep_goes_on(sweep: Run, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []

    def sometimes(config: RunConfig, report: Report) -> float:
        calls.append(config.trial.number)
        if len(calls) == 2:
            raise MemoryError("no more")
        return 0.5

    sweep(*_narrow("hydra.sweeper.trials=2"), objective=sometimes)
    assert calls == [0, 1, 2]
    assert "trial 1: failed: MemoryError: no more, best 0.50000 (trial 0)" in capsys.readouterr().err


def test_three_failures_at_the_start_end_it(sweep: Run) -> None:
    def never(config: RunConfig, report: Report) -> float:
        raise ValueError("cohort: expected episodes, got none")

    with pytest.raises(HydraException, match=r"3 trials failed.*cohort: expected episodes, got none"):
        sweep(*_narrow(), objective=never)


def test_an_interrupt_gives_the_trial_back(sweep: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(config: RunConfig, report: Report) -> float:
        report(1, 0.5, "epoch 1")
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        sweep(*_narrow(), objective=stopped)
    assert "the same command goes on" in capsys.readouterr().err
    study = open_study(default_url(tmp_path / "runs" / "response"), "response")
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]
    assert study.trials[0].params == study.trials[1].params


def test_jobs_that_a_launcher_loses_are_run_again(sweep: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[int] = []

    class Launcher:
        """Runs several at once; the first time, one is lost, and with it the answer of the others."""

        def __init__(self, task: Callable[[DictConfig], Any], sweeper: StudySweeper) -> None:
            self.task, self.sweeper = task, sweeper

        def launch(self, batch: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
            launched.append(len(batch))
            for number, overrides in enumerate(batch):
                if (len(launched), number) == (1, 1):
                    continue
                composed = self.sweeper._composed(list(overrides))
                with open_dict(composed):
                    del composed["hydra"]
                self.task(composed)
            if len(launched) == 1:
                raise RuntimeError("a job was lost")
            return [JobReturn(status=JobStatus.COMPLETED) for _ in batch]

    original = StudySweeper.setup

    def setup(self: StudySweeper, **given: Any) -> None:
        original(self, **given)
        self.launcher = Launcher(given["task_function"], self)  # type: ignore[assignment]

    monkeypatch.setattr(StudySweeper, "setup", setup)
    sweep(*_narrow("hydra.sweeper.trials=5", "hydra.sweeper.together=3"))
    assert launched == [3, 3]
    study = open_study(default_url(tmp_path / "runs" / "response"), "response")
    assert [trial.state.name for trial in study.trials].count("COMPLETE") == 5
    assert study.trials[3].params == study.trials[1].params


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["training.learning_rat=interval(0, 1)"], "learning_rat"),
        (["model.width=interval(16, 32)"], "model.width"),
        (["training.batch_size=choice(64, many)"], "training.batch_size"),
        (["training.dropout=interval(2, 1)"], "training.dropout: expected interval(low, high)"),
        (["hydra.sweeper.trials=0"], "hydra.sweeper.trials: expected at least 1"),
        (["hydra.sweeper.study=a/b"], "hydra.sweeper.study: expected a plain folder name"),
        (["hydra.sweeper.storage=nothing"], "hydra.sweeper.storage: expected the URL of a database"),
        (["training.learning_rate=interval(-2, -1)"], "training.learning_rate: expected a positive number"),
    ],
)
def test_a_mistake_ends_in_one_clear_line(sweep: Run, tmp_path: Path, arguments: list[str], said: str) -> None:
    with pytest.raises((HydraException, ValueError), match=r"(?s).*") as told:
        sweep(*_narrow(*arguments))
    assert said in str(told.value)
    assert not (tmp_path / "runs" / "response" / FILE).exists()


def test_without_optuna_one_line_says_what_to_install(sweep: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna.distributions", None)
    with pytest.raises(HydraException, match=r"^optuna is not installed; pip install 'ican_ml\[sweep\]'$"):
        sweep(*_narrow())


def test_ordinary_runs_have_no_trial() -> None:
    assert RunConfig().trial == TrialConfig()
    assert not RunConfig().trial.study


def test_a_sweep_for_real(tmp_path: Path, simulated: Path) -> None:
    command = [
        *(sys.executable, str(ROOT / "train.py"), "-m", "sweep=response", f"cohort.path={simulated}", "runs=runs"),
        *(*_narrow(), "experiment=sanity", "hydra.sweeper.trials=2", "model=base", "inputs.records=false"),
        *("inputs.modalities=[mutation]", "trainer.threads=1", "training.epochs=2", "model.resistance=false"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "response"
    study = open_study(default_url(folder), "response")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    for trial in study.trials:
        run = folder / "trials" / f"{trial.number:04d}"
        fit = json.loads((run / "private" / "split" / "fit" / "done.json").read_text())
        losses = {row["epoch"]: row["tuning_loss"] for row in fit["curve"]}
        assert trial.intermediate_values == losses
        assert trial.value == fit["tuning_loss"] == min(losses.values())
        assert not list(run.glob("bundle"))
        assert not list((run / "private").glob("*/scores"))
        assert not list(run.rglob("*.ckpt"))
    assert "Traceback" not in done.stderr
