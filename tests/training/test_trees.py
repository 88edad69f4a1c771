"""The trees against XGBoost itself, what they see, and that no patient's own outcome reaches its crossed score."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xgboost as xgb

from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
from ican_ml.model.trees import MISSING, TreePath
from ican_ml.training.config import TrainingConfig
from ican_ml.training.losses import total_loss
from ican_ml.training.trees import complete_trees, fit_mix, fit_trees
from ican_ml.training.wide import fit_wide

from .conftest import Parts

CONFIG = ModelConfig(deep=False, trees=30, tree_depth=3)
TRAINING = TrainingConfig(tree_patience=5, tree_rate=0.2)


@pytest.mark.parametrize("depth", [1, 4])
def test_complete_trees_give_what_xgboost_gives(schema: InputSchema, depth: int) -> None:
    random = np.random.default_rng(2)
    values = random.normal(size=(500, 6)).astype(np.float32)
    target = values[:, 0] * values[:, 1] + (values[:, 2] > 0.3)
    settings = {"max_depth": depth, "eta": 0.3, "base_score": 0.0, "min_child_weight": 40}
    model = xgb.train(settings, xgb.DMatrix(values, target), 12)
    path = TreePath(replace(schema, tasks=schema.tasks[:1]), 15, depth, 1)
    for buffer, found in zip((path.feature, path.threshold, path.leaf), complete_trees(model, depth, 15), strict=True):
        buffer[0, 0, 0] = torch.from_numpy(found)
    queries = np.concatenate([values, np.repeat(path.threshold[0, 0, 0, :12, :1].numpy().clip(-9, 9), 6, axis=1)])
    got = path(torch.from_numpy(queries)[:, None])[:, 0, 0, 0]
    np.testing.assert_allclose(got, model.predict(xgb.DMatrix(queries)), atol=1e-6)


def test_each_category_has_trees_of_its_own_patients(
    schema: InputSchema, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ican_ml.training.trees._FEWEST", 10)
    network = PatientTransformer(replace(CONFIG, trees_by="indication"), replace(schema, tasks=schema.tasks[:1]))
    assert network.trees is not None
    subject = np.arange(parts.train.encoded.n_rows) // 2
    fit_trees(network, parts.train, parts.tuning, subject=subject, training=TRAINING, seed=1)
    trees = network.trees.leaf[0, 0]
    grown = [g for g in range(1, len(trees)) if not torch.equal(trees[g], trees[0])]
    assert len(grown) > 1, "too few patients of any indication"
    batch = parts.all.batch(np.arange(parts.all.encoded.n_rows))
    with torch.no_grad():
        values = network.tree_values(batch, network.normalise(batch)[1])
        one_hot = values[..., network.trees.categories.start : network.trees.categories.stop]
        found = network.trees(values)[..., 0, 0]
        group = network.trees.group(values.flatten(0, 1)).reshape(found.shape)
        assert torch.equal(group, (one_hot > 0).long().argmax(-1) + 1)
        one_hot[:] = MISSING
        of_all = network.trees(values)[..., 0, 0]
        network.trees.leaf[0, 0, 0] = 0
        one_hot[..., grown[0] - 1] = 1
        of_first = network.trees(values)[..., 0, 0] * 2
    is_first = group == grown[0]
    torch.testing.assert_close(found[is_first], (of_all + of_first)[is_first] / 2)
    assert not torch.allclose(found[is_first], of_all[is_first])


def test_trees_of_categories_that_nobody_has_are_refused(schema: InputSchema) -> None:
    for name in ("site", "line"):  # not a covariate, and a number
        with pytest.raises(ValueError, match=r"trees_by: expected a covariate of categories among \['indication'\]"):
            PatientTransformer(replace(CONFIG, trees_by=name), schema)


def test_they_lower_the_tuning_loss_of_every_kind_of_task(schema: InputSchema, parts: Parts) -> None:
    losses = []
    for config in (CONFIG, replace(CONFIG, trees=0)):
        torch.manual_seed(1)
        network, train, tuning = PatientTransformer(config, schema), parts.train, parts.tuning
        if network.trees is not None:
            subject = np.arange(train.encoded.n_rows) // 2
            train, tuning = fit_trees(network, train, tuning, subject=subject, training=TRAINING, seed=1)
            assert all(leaf.any() for leaf in network.trees.leaf)
        fit_wide(network, train, tuning, strengths=[1000.0])
        batch = parts.tuning.batch(parts.tuning.rows)
        with torch.inference_mode():
            losses.append([float(total_loss((task,), network(batch), batch)) for task in network.tasks])
    assert all(better < worse for better, worse in zip(*losses, strict=True)), losses


def test_the_outcomes_of_a_subject_do_not_reach_its_crossed_scores(schema: InputSchema, parts: Parts) -> None:
    subject = np.arange(parts.train.encoded.n_rows) // 2
    chosen = subject == subject[parts.train.rows[0]]
    changed = {name: value.copy() for name, value in parts.train.outcomes.items()}
    for name in ("response_target", "os_target"):
        changed[name][chosen] = 1 - changed[name][chosen]
    network = PatientTransformer(CONFIG, schema)
    nobody = parts.train.of_episodes(*_nobody())  # would choose the number of trees, which everybody's outcomes move
    assert network.trees is not None
    found = []
    for outcomes in (parts.train.outcomes, changed):
        data = replace(parts.train, outcomes=outcomes)
        crossed, _ = fit_trees(network, data, nobody, subject=subject, training=TRAINING, seed=1)
        found.append(crossed.outcomes["trees"] @ np.linalg.inv(network.trees.mix.numpy()))  # the mix is everybody's
    before, after = found
    np.testing.assert_allclose(before[chosen], after[chosen], atol=1e-5)
    assert not np.allclose(before, after, atol=1e-2)


def _nobody() -> tuple[np.ndarray, np.ndarray]:
    return np.empty(0, np.int64), np.empty(0, np.int64)


def test_what_is_missing_lies_below_every_value(schema: InputSchema, parts: Parts) -> None:
    network = PatientTransformer(CONFIG, schema)
    batch = parts.all.batch(np.arange(parts.all.encoded.n_rows))
    with torch.no_grad():
        _, state = network.normalise(batch)
        values = network.tree_values(batch, state)
    assert network.trees is not None
    assert values.shape[2] == network.trees.n_values
    (mutation,) = schema.modalities
    n_summary = len(schema.summary_names)
    assert torch.equal(values[:, 0, :n_summary] == MISSING, batch["summary"] == 0)
    omics = values[:, 0, n_summary : n_summary + len(mutation.features)]
    measured = torch.tensor(mutation.measured())[batch["mutation_panel"]]
    assert torch.equal(omics == MISSING, ~measured)
    assert measured.any()
    assert (~measured).any()


def test_a_score_that_tells_of_another_task_is_mixed_in(schema: InputSchema, parts: Parts) -> None:
    tasks = tuple(replace(schema.tasks[0], name=name) for name in ("cut", "whole"))
    network = PatientTransformer(ModelConfig(deep=False), replace(schema, tasks=tasks))
    random = np.random.default_rng(3)
    shape = parts.train.shape
    logit = random.normal(size=(*shape, 1)) * 2
    outcomes = {"cut_target": random.random(shape) < 1 / (1 + np.exp(-logit[..., 0]))}
    outcomes |= {"whole_target": random.random(shape) < 1 / (1 + np.exp(-logit[..., 0]))}
    outcomes |= {f"{task.name}_weight": np.ones(shape) for task in tasks}
    train = replace(parts.train, outcomes={name: values.astype(np.float32) for name, values in outcomes.items()})
    scores = np.concatenate([random.normal(size=logit.shape), logit], axis=2).astype(np.float32)
    mix = fit_mix(network, train, scores)
    assert mix[1, 0] > 0.5, "the other's trees, where they tell"
    assert abs(mix[0, 0]) < 0.5, "its own do not"
    assert abs(mix[0, 1]) < 0.2
    one = PatientTransformer(ModelConfig(deep=False), replace(schema, tasks=tasks[:1]))
    assert torch.equal(fit_mix(one, train, scores[..., :1]), torch.eye(1))
