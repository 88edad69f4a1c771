"""Two processes train as one does; a fit that is asked to stop loses nothing; mistakes in the set-up are told."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ican_ml.inputs.encode import Float32
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
from ican_ml.stopping import stoppable
from ican_ml.training.config import Strategy, TrainerConfig, TrainingConfig
from ican_ml.training.deep import Curve, DeepFit, dismiss, train_deep
from ican_ml.training.distributed import Ranks, broadcast, started_outside, together
from ican_ml.training.loop import predict
from ican_ml.training.progress import Report, Stopped

from .conftest import Parts, at_call

ALONE = TrainerConfig(threads=1)
BATCH = 31
# Without dropout: each process draws its own.
MODEL = ModelConfig(
    width=8, heads=2, bottleneck_tokens=2, dropout=0, token_dropout=0, modality_dropout=0, identity_dropout=0,
    code_dropout=0, members=2,
)  # fmt: skip

DROPOUT = replace(MODEL, dropout=0.3, token_dropout=0.2)


@dataclass
class Fitted:
    """Weights and losses of a fit."""

    weights: dict[str, Tensor]
    curve: Curve


class Fitter:
    """A small fit of the deep path: two epochs of batches that do not share out evenly, the last of one patient."""

    def __init__(self, schema: InputSchema, parts: Parts) -> None:
        n = (len(parts.train.rows) - 1) // BATCH * BATCH + 1
        self.schema, self.train, self.tuning = schema, replace(parts.train, rows=parts.train.rows[:n]), parts.tuning

    def __call__(
        self,
        folder: Path,
        *,
        trainer: TrainerConfig = ALONE,
        ranks: Ranks | None = None,
        model: ModelConfig = MODEL,
        report: Report | None = None,
    ) -> Fitted:
        torch.set_num_threads(1)
        torch.manual_seed(5)
        made = DeepFit(
            network=PatientTransformer(model, self.schema),
            train=self.train,
            tuning=self.tuning,
            training=TrainingConfig(batch_size=BATCH, bucket=2, epochs=2, learning_rate=0.01),
            trainer=trainer,
            folder=folder,
            seed=5,
        )
        return Fitted(*train_deep(made, ranks or Ranks(), report=report))

    def predictions(self, fitted: Fitted) -> dict[str, Float32]:
        network = PatientTransformer(MODEL, self.schema)
        network.load_state_dict(fitted.weights)
        return predict(network, self.tuning.encoded, self.tuning.rows)


@pytest.fixture(scope="module")
def fitter(schema: InputSchema, parts: Parts) -> Fitter:
    return Fitter(schema, parts)


@contextmanager
def two(strategy: Strategy) -> Iterator[tuple[TrainerConfig, Ranks]]:
    trainer = TrainerConfig(devices=2, threads=1, strategy=strategy)
    with together(trainer, "same") as ranks:
        yield trainer, ranks


@pytest.mark.parametrize("strategy", list(Strategy))
def test_two_processes_follow_one_and_go_on_after_a_stop(
    fitter: Fitter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: Strategy
) -> None:
    """Stopped by a signal in mid-epoch, they save; started again, they end where one process ends."""
    alone = fitter(tmp_path / "alone")
    before = dict(os.environ)
    saved = tmp_path / "last.ckpt"
    with two(strategy) as (trainer, ranks):
        with monkeypatch.context() as patch:
            ask_to_stop(patch, "training_step", call=len(fitter.train.rows) // BATCH + 3)
            with pytest.raises(Stopped, match="in epoch 2"):
                fitter(tmp_path, trainer=trainer, ranks=ranks)
        assert saved.is_dir() == (strategy is Strategy.fsdp)
        if saved.is_dir():  # a kill between the two renamings leaves this
            saved.rename(tmp_path / "last.ckpt.old")
        found = fitter(tmp_path, trainer=trainer, ranks=ranks)
        dismiss(ranks)
    assert os.environ == before
    for one, other in zip(found.curve, alone.curve, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    known = fitter.predictions(alone)
    for name, output in fitter.predictions(found).items():
        np.testing.assert_allclose(output, known[name], atol=1e-4)


def ask_to_stop(patch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Send this process a signal as it calls this method of the module for the ``call``-th time."""
    at_call(patch, name, call, lambda: os.kill(os.getpid(), signal.SIGUSR1))


def test_a_fit_that_is_asked_to_stop_ends_like_a_whole_one(
    fitter: Fitter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within an epoch, in its last batch, in a validation, in the very last batch."""
    whole = fitter(tmp_path / "whole", model=DROPOUT)
    batches = -(-len(fitter.train.rows) // BATCH)
    moments = [("training_step", batches + 2), ("training_step", batches), ("validation_step", 2)]
    for name, call in [*moments, ("training_step", 2 * batches)]:
        folder = tmp_path / f"{name}-{call}"
        with monkeypatch.context() as patch:
            ask_to_stop(patch, name, call)
            with pytest.raises(Stopped, match="SIGUSR1"):
                fitter(folder, model=DROPOUT)
        found = fitter(folder, model=DROPOUT)
        assert found.curve == whole.curve
        assert all(torch.equal(value, found.weights[name]) for name, value in whole.weights.items())


def test_a_stopped_run_says_so_and_requeues_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    queue = tmp_path / "scontrol"
    queue.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    queue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    handler = signal.getsignal(signal.SIGUSR1)

    def as_in_a_library(number: int) -> None:  # torch's export, among others
        try:
            os.kill(os.getpid(), number)
        except Exception as error:
            raise RuntimeError("wrapped") from error

    for name in ("SIGUSR1", "SIGTERM"):
        with pytest.raises(SystemExit) as ended, stoppable(Ranks()):
            as_in_a_library(signal.Signals[name])
        assert ended.value.code == 128 + signal.Signals[name]
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    assert signal.getsignal(signal.SIGUSR1) is handler


def test_the_report_may_end_a_fit(fitter: Fitter, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def report(epoch: int, loss: float) -> None:
        if epoch == 2:
            raise Enough

    with pytest.raises(Enough):
        fitter(tmp_path, report=report)


def test_what_started_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_outside() is None
    for name, value in (("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_LOCALID", "1")):
        monkeypatch.setenv(name, value)
    assert started_outside() == Ranks(rank=1, size=4, local=1)
    with (
        pytest.raises(ValueError, match=r"expected devices x nodes to be the 4 processes .* got 2 x 1"),
        together(TrainerConfig(devices=2), ""),
    ):
        pass
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert started_outside() is None
    with (
        pytest.raises(ValueError, match=r"expected srun or torchrun to start 4 processes"),
        together(TrainerConfig(devices=2, nodes=2), ""),
    ):
        pass
    with together(TrainerConfig(), "") as ranks:
        assert ranks == Ranks()
        assert broadcast([1], ranks) == [1]


_RANK = """
import sys
from ican_ml.training.config import TrainerConfig
from ican_ml.training.distributed import together
try:
    with together(TrainerConfig(devices=2), sys.argv[1]):
        print("went on")
except ValueError as error:
    print(error)
"""


def test_processes_with_other_configurations_do_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, f"configuration {rank}"],
            env=environment | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        said, _ = process.communicate()
        assert said.startswith("expected the same configuration in all 2 processes, got another one in [1]")


_LOSES_A_CHILD = """
import os, signal
from ican_ml.training import distributed
from ican_ml.training.config import TrainerConfig
distributed._GRACE = 0.1
start = distributed._start_children
def start_and_kill(*arguments):
    children = start(*arguments)
    children[0].kill()
    return children
distributed._start_children = start_and_kill
with distributed.together(TrainerConfig(devices=2), ""):
    print("went on")
"""


def test_a_process_that_is_lost_before_they_meet_ends_the_run() -> None:
    done = subprocess.run([sys.executable, "-c", _LOSES_A_CHILD], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "expected 2 processes to train, lost process 1; the same command goes on\n"


def test_the_log_tells_rates(fitter: Fitter, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ican_ml")
    fitter(tmp_path)
    line = next(message for message in caplog.messages if message.startswith("epoch 2/2"))
    assert all(unit in line for unit in ("patients/s", "tokens/s", "loading", "GB")), line


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", [{"precision": "bf16-mixed"}, {"compile": True}])
def test_faster_steps_learn_the_same(
    fitter: Fitter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    """With products in bfloat16, or traced to be compiled: the losses are close, and the weights keep their names."""
    traced, compiled = [], nn.Module.compile

    def compile_quickly(module: nn.Module, **options: Any) -> None:
        traced.append(module)
        compiled(module, backend="eager", **options)  # the default one takes minutes on a CPU

    expected = fitter(tmp_path / "plain")
    monkeypatch.setattr(nn.Module, "compile", compile_quickly)
    found = fitter(tmp_path / "fast", trainer=TrainerConfig(threads=1, **how))
    assert len(traced) == (2 if "compile" in how else 0)
    assert found.weights.keys() == expected.weights.keys()
    for one, other in zip(found.curve, expected.curve, strict=True):
        assert one == pytest.approx(other, abs=1e-4 if "compile" in how else 2e-2)
