"""The loader's order, and that nobody sees another part's outcomes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ican_ml.training.data import Batch, PatientLoader

from .conftest import Parts


def epoch(loader: PatientLoader) -> list[Batch]:
    return list(loader)


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def test_the_order_depends_on_seed_and_epoch_alone(parts: Parts) -> None:
    def made(seed: int) -> PatientLoader:
        return PatientLoader(parts.train, batch_size=32, seed=seed)

    loader, again = made(1), made(1)
    np.random.default_rng().random()
    first, second = epoch(loader), epoch(loader)
    assert same(first, epoch(again))
    assert same(second, epoch(again))
    assert not same(first, second)
    assert not same(first, epoch(made(2)))


def test_an_epoch_holds_each_patient_once(parts: Parts) -> None:
    loader = PatientLoader(parts.train, batch_size=32, seed=1)
    summary = torch.cat([batch["summary"] for batch in loader])
    assert len(summary) == len(parts.train.rows)
    assert len(loader) == -(-len(parts.train.rows) // 32)
    everyone = torch.from_numpy(parts.train.encoded.summary[parts.train.rows])
    torch.testing.assert_close(summary.double().sum(0), everyone.double().sum(0))


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_stopped_loader_goes_on_with_the_next_batch(parts: Parts, taken: int) -> None:
    whole = PatientLoader(parts.train, batch_size=32, seed=1)
    expected = [*epoch(whole), *epoch(whole)]
    stopped = PatientLoader(parts.train, batch_size=32, seed=1)
    start = iter(stopped)
    begun = [next(start) for _ in range(taken)]
    resumed = PatientLoader(parts.train, batch_size=32, seed=1)
    resumed.load_state_dict(stopped.state_dict())
    assert same([*begun, *epoch(resumed), *epoch(resumed)], expected)


def test_without_a_seed_the_order_is_as_given(parts: Parts) -> None:
    summary = torch.cat([batch["summary"] for batch in PatientLoader(parts.tuning, batch_size=7)])
    np.testing.assert_array_equal(summary, parts.tuning.encoded.summary[parts.tuning.rows])


def test_only_the_chosen_episodes_have_outcomes(parts: Parts) -> None:
    data = parts.all
    known = [name for name in data.outcomes if name.endswith("_weight")]
    patient, slot = np.array([4, 9, 4]), np.array([0, 0, 0])
    part = data.of_episodes(patient, slot)
    assert part.rows.tolist() == [4, 9]
    for name in known:
        expected = np.zeros_like(data.outcomes[name])
        expected[patient, slot] = data.outcomes[name][patient, slot]
        np.testing.assert_array_equal(part.outcomes[name], expected)
    assert not set(parts.train.rows) & set(parts.tuning.rows)


def test_sorted_batches_are_padded_less_and_hold_each_patient_once(parts: Parts) -> None:
    known = parts.train.encoded.modalities["mutation"]
    kept = np.arange(known.tokens.shape[1]) < 1 + np.arange(len(known.tokens))[:, None] % known.tokens.shape[1]
    modalities = {"mutation": replace(known, tokens=known.tokens * kept)}
    data = replace(parts.train, encoded=replace(parts.train.encoded, modalities=modalities))
    plain, sorted_ = (PatientLoader(data, batch_size=16, seed=1, bucket=bucket) for bucket in (1, 100))
    batches = epoch(sorted_)

    def width(batches: list[Batch]) -> float:
        return float(np.mean([batch["mutation_tokens"].shape[1] for batch in batches]))

    assert width(batches) < 0.75 * width(epoch(plain))
    assert sum(len(batch["summary"]) for batch in batches) == len(parts.train.rows)
    together = torch.cat([batch["summary"] for batch in batches]).double().sum(0)
    everyone = torch.from_numpy(parts.train.encoded.summary[parts.train.rows]).double().sum(0)
    torch.testing.assert_close(together, everyone)
    assert not same(batches, epoch(sorted_))
    sizes = [int(batch["n_tokens"]) for batch in batches]
    assert sizes != sorted(sizes), "the order of batches is drawn too"


@pytest.mark.parametrize("size", [2, 3, 50])
def test_processes_share_a_batch(parts: Parts, size: int) -> None:
    """Each patient is in one share, and the mean of the shares' losses is the loss of the batch."""
    whole = epoch(PatientLoader(parts.train, batch_size=30, seed=4, bucket=3))
    shares = [
        epoch(PatientLoader(parts.train, batch_size=30, seed=4, bucket=3, rank=rank, size=size)) for rank in range(size)
    ]
    for number, batch in enumerate(whole):
        own = [share[number] for share in shares]
        assert {int(part["n_patients"]) for part in own} == {len(batch["summary"])}
        for kind in ("response", "os", "sensitivity"):
            weight = batch[f"{kind}_weight"]
            assert sum(float(part[f"{kind}_weight"].sum()) for part in own) == pytest.approx(float(weight.sum()))
            total = max(float((weight.amax(-1) if weight.dim() == 3 else weight).sum()), 1.0)
            assert [float(part[f"{kind}_episodes"]) for part in own] == pytest.approx([total / size] * size)
