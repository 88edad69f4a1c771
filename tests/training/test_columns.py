"""The columns path: trained by itself on what the trees split on, averaged with all other paths, exported."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ican_ml.bundle.export import export_bundle
from ican_ml.inputs.assemble import CohortStates
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.columns import SHARE, ColumnsPath
from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
from ican_ml.model.trees import MISSING
from ican_ml.training import loop
from ican_ml.training.columns import fit_columns
from ican_ml.training.config import TrainerConfig, TrainingConfig
from ican_ml.training.loop import FitResult
from ican_ml.training.losses import total_loss
from ican_ml.training.trees import tree_values

from .conftest import Parts

MODEL = ModelConfig(
    width=8, heads=2, bottleneck_tokens=2, trees=20, tree_depth=2, trees_by="indication", columns=16, members=2
)


def fit_all(schema: InputSchema, parts: Parts, states: CohortStates, folder: Path, model: ModelConfig) -> FitResult:
    return loop.fit(
        schema,
        parts.train,
        parts.tuning,
        subject=states.subject_id,
        model=model,
        training=TrainingConfig(batch_size=48, wide_strengths=[300.0], epochs=2, tree_patience=5),
        trainer=TrainerConfig(threads=1),
        folder=folder,
        seed=5,
    )


@pytest.fixture(scope="module")
def fitted(
    schema: InputSchema, parts: Parts, states: CohortStates, tmp_path_factory: pytest.TempPathFactory
) -> FitResult:
    return fit_all(schema, parts, states, tmp_path_factory.mktemp("columns"), MODEL)


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], value) for name, value in other.items())


def columns_of(network: PatientTransformer) -> ColumnsPath:
    assert network.columns is not None
    return network.columns


def test_all_paths_are_averaged_with_the_columns(parts: Parts, fitted: FitResult) -> None:
    network = fitted.network
    batch = parts.tuning.batch(parts.tuning.rows)
    with torch.no_grad():
        paths = network.paths(batch)
        both = network.outputs(paths.score, network.mean(paths.deep), network.mean(paths.columns))
        without = network.outputs(paths.score, network.mean(paths.deep))
        alone = network.finished(network.mean(paths.columns))
    for task in network.tasks:
        expected = (1 - SHARE) * without[task.name] + SHARE * alone[task.name]
        torch.testing.assert_close(both[task.name], expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(both[task.name], without[task.name])
    assert not torch.equal(*(each["os"] for each in paths.columns)), "members differ"


def test_columns_learn_every_kind_of_task(parts: Parts, fitted: FitResult) -> None:
    network = fitted.network
    found = tree_values(network, parts.train)
    values, group = torch.from_numpy(found.values)[:, None], torch.from_numpy(found.group)[:, None]
    outcome = {
        name: torch.from_numpy(v[found.patient, found.slot][:, None]) for name, v in parts.train.outcomes.items()
    }
    columns = columns_of(network)
    with torch.no_grad():
        learned = network.mean(columns(values, group))
        told = {name: bias.expand_as(learned[name]) for name, bias in columns.members[0].bias.items()}
        for task in network.tasks:
            losses = [float(total_loss([task], network.finished(said), outcome)) for said in (learned, told)]
            assert losses[0] < losses[1], task.name


def test_the_seed_decides_and_other_paths_do_not(schema: InputSchema, parts: Parts, fitted: FitResult) -> None:
    expected = columns_of(fitted.network).state_dict()
    for seed, same in ((5, True), (6, False)):
        torch.manual_seed(seed + 100)
        network = PatientTransformer(replace(MODEL, deep=False), schema)
        fit_columns(network, parts.train, parts.tuning, seed=seed)
        assert same_state(columns_of(network).state_dict(), expected) is same


def test_tuning_patients_are_learned_from_once_all_is_judged(
    schema: InputSchema, parts: Parts, states: CohortStates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []

    def calibrate(network: PatientTransformer, *args: Any, **keywords: Any) -> dict[str, Any]:
        judged.append(copy.deepcopy(columns_of(network).state_dict()))
        return {}

    monkeypatch.setattr(loop, "calibrate", calibrate)
    found = columns_of(fit_all(schema, parts, states, tmp_path, replace(MODEL, deep=False)).network)
    assert not same_state(judged[0], found.state_dict())
    network = PatientTransformer(replace(MODEL, deep=False), schema)
    fit_columns(network, parts.train, seed=5)
    assert same_state(judged[0], columns_of(network).state_dict())


def test_the_network_without_columns_is_as_ever(schema: InputSchema) -> None:
    states = []
    for columns in (0, 16):
        torch.manual_seed(3)
        states.append(PatientTransformer(replace(MODEL, columns=columns), schema).state_dict())
    without, with_them = states
    assert all(torch.equal(with_them[name], value) for name, value in without.items())
    assert {name.split(".")[0] for name in with_them.keys() - without.keys()} == {"columns"}


def test_missing_values_are_at_the_mean_and_wild_ones_are_clipped() -> None:
    columns = ColumnsPath([], 2, 1, 4, 1)
    columns.set_scale(torch.tensor([[1.0, MISSING], [3.0, MISSING], [MISSING, MISSING]]))
    seen = columns.scaled(torch.tensor([[3.0, 1.0], [MISSING, MISSING], [1e6, 5.0]]))
    np.testing.assert_allclose(seen, [[1, 0], [0, 0], [4, 0]], atol=1e-6)


def test_columns_are_exported(schema: InputSchema, tmp_path: Path, fitted: FitResult) -> None:
    assert export_bundle(fitted.network, schema, tmp_path / "bundle") < 1e-5
