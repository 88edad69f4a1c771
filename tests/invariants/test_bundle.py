"""The bundle of every model of configs/ keeps the invariants where only NumPy and onnxruntime run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ican_ml.bundle.export import export_bundle
from ican_ml.bundle.read import Arrays, BundleError
from ican_ml.invariants.bundle import bundle_checks, check_bundle
from ican_ml.invariants.checks import InvariantError
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.serving.predictor import Predictor

from .conftest import MODELS, SchemaOf, model_config

BundleOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def bundle_of(schema_without: SchemaOf, tmp_path_factory: pytest.TempPathFactory) -> BundleOf:
    """Give a function from a model of configs/ to its bundle, for one task. Only the last has omics, to be quick."""
    made: dict[str, Path] = {}

    def bundle(model: str) -> Path:
        if model not in made:
            schema = schema_without("most omics" if model == MODELS[-1] else "omics")
            schema = replace(schema, tasks=schema.tasks[MODELS.index(model) % 3 :][:1])
            torch.manual_seed(1)
            network = PatientTransformer(model_config(model), schema)
            with torch.no_grad():
                for member in network.members:
                    for head in member.heads.values():
                        head[-1].weight.normal_(std=0.1)
                network.wide.summary.weight.normal_(std=0.1)
                network.wide.drug.weight[1:].normal_()
                if network.trees is not None:
                    network.trees.feature.random_(network.trees.n_values)
                    network.trees.threshold.normal_()
                    network.trees.leaf.normal_(std=0.01)
            made[model] = tmp_path_factory.mktemp("bundles") / model
            export_bundle(network, schema, made[model])
        return made[model]

    return bundle


@pytest.mark.parametrize("model", MODELS)
def test_every_model_exported(bundle_of: BundleOf, model: str) -> None:
    check_bundle(bundle_of(model), seed=2)


def test_checks_come_one_by_one(bundle_of: BundleOf) -> None:
    names = [name for name, _ in bundle_checks(bundle_of(MODELS[-1]))]
    assert len(set(names)) == len(names) > 25
    assert {"batch composition", "padding of the arrays", "order of a request"} < set(names)


def test_a_graph_that_sees_who_else_is_asked_is_found(bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Predictor.run

    def centred(self: Predictor, inputs: Arrays) -> dict[str, Any]:
        return {name: output - output.mean(axis=1, keepdims=True) for name, output in run(self, inputs).items()}

    monkeypatch.setattr(Predictor, "prove", lambda _: None)
    monkeypatch.setattr(Predictor, "run", centred)
    with pytest.raises(InvariantError) as caught:
        check_bundle(bundle_of(MODELS[-1]))
    failed = {failure.invariant for failure in caught.value.failures}
    assert {"regimens do not see one another", "order of a request"} < failed
    assert "order of keys and events" not in failed


def test_a_bundle_that_was_changed_is_not_even_asked(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        check_bundle(tmp_path)
