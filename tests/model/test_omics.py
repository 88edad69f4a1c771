"""Normalisation inside the network and the bag over all features, against plain dense NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ican_ml.inputs.schema import ModalitySchema
from ican_ml.model.omics import FeatureBag, FeatureScale

FEATURES = 7


def modality(kind: str, *, explicit: bool) -> ModalitySchema:
    random = np.random.default_rng(1)
    return ModalitySchema(
        name="m",
        kind=kind,
        explicit=explicit,
        features=tuple(f"f{i}" for i in range(FEATURES)),
        genes=tuple(f"f{i}" for i in range(FEATURES)),
        mean=random.normal(size=FEATURES).astype(np.float32),
        inverse_sd=random.uniform(0.2, 1, FEATURES).astype(np.float32),
        rank_scale=np.ones(FEATURES, np.float32),
        panels={"whole": None, "part": (0, 2, 5)},
        max_tokens=3,
    )


def bag_of(schema: ModalitySchema, dense: np.ndarray, panel: list[int]) -> tuple[torch.Tensor, np.ndarray]:
    """The bag of rows that store every value that is not NaN, and its weight."""
    stored = ~np.isnan(dense)
    indptr = torch.from_numpy(np.concatenate([[0], stored.sum(1).cumsum()]))
    indices = torch.from_numpy(np.nonzero(stored)[1])
    values = torch.from_numpy(dense[stored])
    total = torch.from_numpy(np.repeat(np.nansum(dense, 1), stored.sum(1)).astype(np.float32))
    scaled = FeatureScale(schema)(values, indices, total, centred=schema.explicit)
    torch.manual_seed(2)
    bag = FeatureBag(schema, 4)
    return bag(indptr, indices, scaled, torch.tensor(panel)).detach(), bag.weight.detach().numpy()


@pytest.mark.parametrize("kind", ["count", "binary", "continuous"])
def test_an_absent_feature_of_a_sparse_modality_is_a_measured_zero(kind: str) -> None:
    schema = modality(kind, explicit=False)
    values = np.random.default_rng(4).poisson(0.8, (6, FEATURES)).astype(np.float32)
    panel = [1, 1, 2, 2, 0, 1]
    measured = schema.measured()[panel]
    values = values * measured
    found, weight = bag_of(schema, np.where(values > 0, values, np.nan), panel)
    if kind == "count":
        values = np.log1p(values * 1e4 / np.maximum(values.sum(1, keepdims=True), 1e-6))
    expected = ((values - schema.mean) * schema.inverse_sd * measured) @ weight
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_missing_value_of_an_explicit_modality_adds_nothing() -> None:
    schema = modality("continuous", explicit=True)
    values = np.random.default_rng(4).normal(size=(5, FEATURES)).astype(np.float32)
    values[1, 2:5] = np.nan
    values[2] = np.nan
    found, weight = bag_of(schema, values, [1] * 5)
    expected = np.nan_to_num((values - schema.mean) * schema.inverse_sd) @ weight
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert not found[2].any()


def test_normalised_values_are_bounded() -> None:
    schema = replace(modality("continuous", explicit=True), inverse_sd=np.full(FEATURES, 100, np.float32))
    scaled = FeatureScale(schema)(torch.tensor([1e6, -1e6]), torch.tensor([0, 1]), torch.ones(2))
    assert scaled.tolist() == [10.0, -10.0]


def test_a_feature_far_above_zero_keeps_its_differences() -> None:
    schema = modality("continuous", explicit=False)
    schema = replace(schema, mean=np.full(FEATURES, 50, np.float32), inverse_sd=np.full(FEATURES, 1, np.float32))
    values = np.full((3, FEATURES), 50, np.float32)
    values[1, 0], values[2] = 52, np.nan
    found, weight = bag_of(schema, values, [1, 1, 1])
    np.testing.assert_allclose(found[1] - found[0], 2 * weight[0], atol=1e-4)
    np.testing.assert_allclose(found[2], -10 * weight.sum(0), atol=1e-4)
