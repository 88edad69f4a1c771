"""The search finds the planted pairs and no others, and leaves everything as it was where it does not help."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ican_ml.encoding.csr import CSRBatch
from ican_ml.inputs.schema import FIRST_KNOWN, InputSchema
from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
from ican_ml.training.losses import total_loss
from ican_ml.training.resistance import _Episodes, _search, fit_resistance

from .conftest import Parts

EPISODES, FEATURES, CLASSES, DRUGS = 12_000, (60, 90), 8, 24
PLANTED = {(3, 2): 0.6, (3, 5): 0.5, (70, 4): 0.9}
LEVEL = np.linspace(-0.4, 0.4, DRUGS)


def simulated(*, planted: bool, seed: int) -> _Episodes:
    """Two modalities; three pairs of feature and class that resist, if planted, and drugs that differ."""
    random = np.random.default_rng(seed)
    has = random.random((EPISODES, sum(FEATURES))) < 0.1
    gain = np.where(random.random(EPISODES) < 0.4, random.uniform(0.5, 3, EPISODES), 0)
    drug = random.integers(DRUGS, size=EPISODES)
    drug_class, logit = drug * CLASSES // DRUGS, random.normal(-1, 1, EPISODES)
    true = logit + gain + LEVEL[drug]
    for (feature, number), share in PLANTED.items() if planted else ():
        true -= share * gain * has[:, feature] * (drug_class == number)
    blocks = np.split(has.astype(np.float32), [FEATURES[0]], axis=1)
    return _Episodes(
        target=(random.random(EPISODES) < 1 / (1 + np.exp(-true))).astype(float),
        weight=np.ones(EPISODES),
        logit=logit + gain,
        gain=gain,
        patient=np.arange(EPISODES),
        drug=np.eye(DRUGS + FIRST_KNOWN)[drug + FIRST_KNOWN],
        drug_class=np.eye(CLASSES + FIRST_KNOWN)[drug_class + FIRST_KNOWN],
        altered=[CSRBatch.from_dense(block, keep_zeros=False) for block in blocks],
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_pairs_are_found_and_no_other_features(seed: int) -> None:
    pairs, share, level = _search(simulated(planted=True, seed=seed))
    found = {(feature, number - FIRST_KNOWN): each for (feature, number), each in zip(pairs, share, strict=True)}
    assert found.keys() >= PLANTED.keys()
    assert {feature for feature, _ in found} == {feature for feature, _ in PLANTED}
    assert all(abs(found[pair] - true) < 0.3 for pair, true in PLANTED.items())
    assert np.corrcoef(level[FIRST_KNOWN:], LEVEL)[0, 1] > 0.85
    assert np.abs(level[FIRST_KNOWN:] - LEVEL).max() < 0.3


def test_where_nothing_is_planted_little_is_found() -> None:
    found = [_search(simulated(planted=False, seed=seed))[0] for seed in range(12)]
    assert sum(map(bool, found)) <= 2


def loss(network: PatientTransformer, batch: dict[str, torch.Tensor]) -> float:
    with torch.inference_mode():
        return float(total_loss(network.tasks[:1], network(batch), batch))


def test_the_tuning_loss_is_never_higher(schema: InputSchema, parts: Parts) -> None:
    torch.manual_seed(0)
    network = PatientTransformer(ModelConfig(width=8, heads=2, bottleneck_tokens=2, resistance=True), schema).eval()
    with torch.no_grad():
        for head in network.members[0].heads.values():
            head[-1].weight.normal_(std=0.3)
    batch = parts.tuning.batch(parts.tuning.rows)
    before = loss(network, batch)
    fit_resistance(network, schema, parts.train, parts.tuning)
    assert network.resistance is not None
    assert network.resistance.level.any()
    assert loss(network, batch) < before
    turned = parts.tuning.outcomes | {"response_target": 1 - parts.tuning.outcomes["response_target"]}
    for buffer in network.resistance.state_dict().values():
        buffer.zero_()
    assert fit_resistance(network, schema, parts.train, replace(parts.tuning, outcomes=turned)) == []
    assert not network.resistance.level.any()


def test_it_needs_no_tuning_patients(schema: InputSchema, parts: Parts) -> None:
    network = PatientTransformer(ModelConfig(width=8, heads=2, bottleneck_tokens=2, resistance=True), schema)
    nobody = replace(parts.tuning, rows=parts.tuning.rows[:0])
    fit_resistance(network, schema, parts.train, nobody)
    assert network.resistance is not None
    assert all(buffer.isfinite().all() for buffer in network.resistance.state_dict().values())
