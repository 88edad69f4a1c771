"""A fit is repeatable, and one that was interrupted ends where an uninterrupted one does, bit for bit."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ican_ml.inputs.assemble import CohortStates
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
from ican_ml.training import loop, progress
from ican_ml.training.config import TrainerConfig, TrainingConfig
from ican_ml.training.data import TOKENS, PatientLoader
from ican_ml.training.loop import FitResult, fit, predict
from ican_ml.training.throughput import flops_per_token

from .conftest import Parts, at_call


class Fitter:
    """A small fit of the simulated patients: three epochs of several batches, saved every second step."""

    def __init__(self, schema: InputSchema, parts: Parts, states: CohortStates) -> None:
        self.schema, self.parts, self.states = schema, parts, states

    def __call__(
        self,
        folder: Path,
        *,
        seed: int = 5,
        epochs: int = 3,
        accumulate: int = 1,
        accelerator: str = "cpu",
        **training: float,
    ) -> FitResult:
        return fit(
            self.schema,
            self.parts.train,
            self.parts.tuning,
            subject=self.states.subject_id,
            model=ModelConfig(width=8, heads=2, bottleneck_tokens=2, modality_dropout=0.2),
            training=TrainingConfig(
                **{"batch_size": 48, "wide_strengths": [300.0], "learning_rate": 0.003, "epochs": epochs, **training}
            ),
            trainer=TrainerConfig(threads=1, checkpoint_every=2, accumulate=accumulate, accelerator=accelerator),
            folder=folder,
            seed=seed,
        )


@pytest.fixture(scope="module")
def fitter(schema: InputSchema, parts: Parts, states: CohortStates) -> Fitter:
    return Fitter(schema, parts, states)


@pytest.fixture(scope="module")
def whole(fitter: Fitter, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    return fitter(tmp_path_factory.mktemp("whole"))


def assert_same(found: FitResult, expected: FitResult) -> None:
    weights = found.network.state_dict()
    assert not [name for name, value in expected.network.state_dict().items() if not torch.equal(weights[name], value)]
    assert found.curve == expected.curve


class Interruption(Exception):
    """Stands for a killed job."""


def test_from_the_first_path_on_threads_add_gradients_up_in_one_order(
    fitter: Fitter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot, value = torch.arange(2**20) % 3, torch.randn(2**20)
    found = []

    def gradients(*_: object, **__: object) -> None:
        torch.set_num_threads(2)
        for _repeat in range(20):
            weight = torch.zeros(3, requires_grad=True)
            (weight[slot] * value).sum().backward()
            found.append(weight.grad)
        raise Interruption

    torch.use_deterministic_algorithms(mode=False)
    monkeypatch.setattr(loop, "fit_wide", gradients)
    with pytest.raises(Interruption):
        fitter(tmp_path)
    torch.set_num_threads(1)
    assert all(torch.equal(each, found[0]) for each in found)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Stop the next fit as it calls this method of the module for the ``call``-th time."""

    def interrupt() -> None:
        raise Interruption

    at_call(monkeypatch, name, call, interrupt)


def test_the_seed_decides(fitter: Fitter, whole: FitResult, tmp_path: Path) -> None:
    assert_same(fitter(tmp_path / "again"), whole)
    other = fitter(tmp_path / "other", seed=6)
    assert not torch.equal(other.network.members[0].context_norm.weight, whole.network.members[0].context_norm.weight)


def test_accumulated_batches_are_one_step(fitter: Fitter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for accumulate in (1, 2):
        fitter(tmp_path / str(accumulate), accumulate=accumulate)
    states = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("1", "2")]
    batches = -(-len(fitter.parts.train.rows) // 48)
    assert [state["global_step"] for state in states] == [3 * batches, 3 * -(-batches // 2)]
    with monkeypatch.context() as patch:
        interrupt_at(patch, "training_step", 5)
        with pytest.raises(Interruption):
            fitter(tmp_path / "cut", accumulate=2)
    assert_same(fitter(tmp_path / "cut", accumulate=2), fitter(tmp_path / "again", accumulate=2))


def test_a_fit_tells_its_losses(whole: FitResult) -> None:
    assert [row["epoch"] for row in whole.curve] == [1, 2, 3]
    assert all(np.isfinite([row["train_loss"], row["tuning_loss"]]).all() for row in whole.curve)
    assert whole.curve[-1]["train_loss"] < whole.curve[0]["train_loss"]
    assert not whole.network.training


def test_a_device_of_known_peak_is_told_its_share_and_changes_nothing(
    fitter: Fitter,
    whole: FitResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "device_peak", lambda *_: 1e9)
    with caplog.at_level(logging.INFO):
        found = fitter(tmp_path)
    assert "MFU" in caplog.text
    assert_same(found, whole)


def test_operations_are_counted_as_torch_counts_them(whole: FitResult, parts: Parts) -> None:
    batch = next(iter(PatientLoader(parts.train, batch_size=48)))
    with FlopCounterMode(display=False) as counter:  # with gradients: without them it fails
        whole.network.member_outputs(batch)
    found = flops_per_token(whole.network, batch)
    assert found * int(batch[TOKENS]) == pytest.approx(3 * counter.get_total_flops())
    assert found > 0


@pytest.mark.parametrize(
    ("name", "call"),
    [*(("training_step", call) for call in (2, 4, 6, 8)), *(("validation_step", call) for call in (1, 2, 5))],
)
def test_an_interrupted_fit_ends_like_a_whole_one(
    fitter: Fitter, whole: FitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, name, call)
        with pytest.raises(Interruption):
            fitter(tmp_path)
    assert_same(fitter(tmp_path), whole)


def test_a_fit_that_had_ended_stays_as_it_was(fitter: Fitter, tmp_path: Path) -> None:
    stopped = fitter(tmp_path, epochs=12, patience=1, learning_rate=1e-12)
    assert len(stopped.curve) < 12
    assert_same(fitter(tmp_path, epochs=12, patience=1, learning_rate=1e-12), stopped)


def test_predictions_do_not_depend_on_the_batch_size(whole: FitResult, parts: Parts) -> None:
    rows = np.array([5, 2, 40, 11, 12])
    network: PatientTransformer = whole.network
    for name, output in predict(network, parts.all.encoded, rows).items():
        assert output.shape[:1] == (5,)
        small = predict(network, parts.all.encoded, rows, batch_size=2)[name]
        np.testing.assert_allclose(small, output, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_a_fit_on_a_gpu_repeats_itself_and_is_near_that_on_the_cpu(
    fitter: Fitter, whole: FitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fitter(tmp_path / "whole", accelerator="gpu")
    with monkeypatch.context() as patch:
        interrupt_at(patch, "training_step", 4)
        with pytest.raises(Interruption):
            fitter(tmp_path / "interrupted", accelerator="gpu")
    assert_same(fitter(tmp_path / "interrupted", accelerator="gpu"), found)
    assert found.tuning_loss == pytest.approx(whole.tuning_loss, rel=0.02)
