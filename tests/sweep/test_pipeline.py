"""A trial of the pipeline: the mean tuning loss of its folds, and nothing scored."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ican_ml import pipeline
from ican_ml.config import Method, SplitConfig
from ican_ml.model.patient_transformer import ModelConfig
from ican_ml.sweep.summary import trial_line
from ican_ml.training.config import TrainerConfig, TrainingConfig
from tests.sweep.conftest import Worker, trial_of
from tests.test_pipeline import cohort, configured

__all__ = ["cohort"]


@pytest.mark.parametrize("deep", [True, False])
def test_the_value_is_the_mean_over_folds(cohort: Path, worker: Worker, folder: Path, deep: bool) -> None:
    queue = worker(trials=1)
    (claim,) = queue.claim(1)
    config = configured(
        cohort,
        folder.parent,
        split=SplitConfig(method=Method.folds),
        model=ModelConfig(width=16, heads=2, bottleneck_tokens=2, deep=deep),
        training=TrainingConfig(epochs=2, batch_size=64, wide_strengths=[300.0]),
        trial=trial_of(folder, claim.number),
    )
    value = pipeline.start(config)
    private = folder / "trials" / "0000" / "private"
    losses = [json.loads((private / f"fold-{n}" / "fit" / "done.json").read_text())["tuning_loss"] for n in (0, 1)]
    assert value == queue.study.trials[0].value == pytest.approx(sum(losses) / 2)
    assert sorted(queue.study.trials[0].intermediate_values) == ([1, 2, 3, 4] if deep else [])
    assert sorted(path.name for path in private.parent.iterdir()) == (
        ["log.txt", "logs", "private"] if deep else ["log.txt", "private"]
    )
    assert not list(private.glob("*/scores"))


def test_one_device_a_trial(cohort: Path, worker: Worker, folder: Path) -> None:
    queue = worker(trials=1)
    (claim,) = queue.claim(1)
    config = replace(
        configured(cohort, folder.parent), trainer=TrainerConfig(devices=2), trial=trial_of(folder, claim.number)
    )
    assert pipeline.start(config) is None
    assert "trainer.devices: expected one process a trial" in trial_line(queue.study, claim.number)
