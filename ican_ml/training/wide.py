"""Fit the linear path first: penalised maximum likelihood by L-BFGS over a path of ridge strengths.

The whole training set is one batch. From strong to weak, each strength starts at the solution of the one before, and the
one with the lowest loss on the tuning patients wins; the network then starts there, its deep heads at zero. (Ridge:
Hoerl and Kennard 1970; path with warm starts: Friedman, Hastie, Tibshirani 2010, doi:10.18637/jss.v033.i01.)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.training.data import Batch, PatientData
from ican_ml.training.losses import total_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class WideFit:
    """The chosen ridge strength (in units of a sum over episodes), and the tuning loss along the path."""

    strength: float
    path: tuple[tuple[float, float], ...]


def fit_wide(
    network: PatientTransformer, train: PatientData, tuning: PatientData, *, strengths: list[float]
) -> WideFit:
    """Fit ``network.wide`` and the biases in place; the deep path takes no part.

    Parameters
    ----------
    strengths
        Ridge penalties to try, strongest first.
    """
    network.eval()
    train_part, tuning_part = (_WidePart.of(network, data) for data in (train, tuning))
    best: tuple[float, float, dict[str, Tensor]] | None = None
    path: list[tuple[float, float]] = []
    for strength in strengths:
        _minimise(network, train_part, strength / train_part.n_episodes)
        with torch.no_grad():
            loss = float(train_part.loss(network) if not tuning_part.n_episodes else tuning_part.loss(network))
        path.append((strength, loss))
        if best is None or loss < best[1]:
            best = (strength, loss, copy.deepcopy(network.state_dict()))
        else:
            break
    assert best is not None
    network.load_state_dict(best[2])
    return WideFit(strength=best[0], path=tuple(path))


@dataclass(frozen=True, kw_only=True, slots=True)
class _WidePart:
    """All patients of a part as one batch, normalised once."""

    batch: Batch
    scaled: dict[str, Tensor]
    state: Tensor
    n_episodes: float

    @classmethod
    def of(cls, network: PatientTransformer, data: PatientData) -> _WidePart:
        batch = data.batch(data.rows)
        batch = {name: value for name, value in batch.items() if "token" not in name and not name.startswith("event_")}
        with torch.no_grad():
            scaled, state = network.normalise(batch)
        n_episodes = sum(_n_episodes(value) for name, value in batch.items() if name.endswith("_weight"))
        return cls(batch=batch, scaled=scaled, state=state, n_episodes=n_episodes)

    def loss(self, network: PatientTransformer) -> Tensor:
        outputs = network.outputs(network.wide(self.batch, self.scaled, self.state), {})
        return total_loss(network.tasks, outputs, self.batch)


def _minimise(network: PatientTransformer, part: _WidePart, penalty: float) -> None:
    weights = list(network.wide.parameters())
    optimiser = torch.optim.LBFGS(
        weights + list(network.bias.parameters()),
        max_iter=60,
        history_size=10,
        tolerance_change=1e-6,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = part.loss(network)
        loss = loss + 0.5 * penalty * torch.stack([w.square().sum() for w in weights]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    optimiser.zero_grad()


def _n_episodes(weight: Tensor) -> float:
    return float((weight.amax(-1) if weight.dim() == 3 else weight).sum())
