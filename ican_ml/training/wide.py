"""Fit the linear path first: penalised maximum likelihood by L-BFGS over a path of ridge strengths.

The whole training set is one batch. From strong to weak, each strength starts at the solution of the one before, and the
one with the lowest loss on the tuning patients wins; the network then starts there, its deep heads at zero. (Ridge:
Hoerl and Kennard 1970; path with warm starts: Friedman, Hastie, Tibshirani 2010, doi:10.18637/jss.v033.i01.)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ican_ml.inputs.encode import Int64
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.training.data import Batch, PatientData
from ican_ml.training.losses import total_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class WideFit:
    """The chosen ridge strength (in units of a sum over episodes), and the tuning loss along the path."""

    strength: float
    path: tuple[tuple[float, float], ...]


def fit_wide(
    network: PatientTransformer, data: PatientData, train: Int64, tuning: Int64, *, strengths: list[float]
) -> WideFit:
    """Fit ``network.wide`` and the biases in place; the deep path takes no part.

    Parameters
    ----------
    strengths
        Ridge penalties to try, strongest first.
    """
    train_batch, tuning_batch = _without_tokens(data.batch(train)), _without_tokens(data.batch(tuning))
    weights, biases = list(network.wide.parameters()), list(network.bias.parameters())
    n_episodes = max(1.0, sum(float(v.amax(-1).sum() if v.dim() == 3 else v.sum())
                              for name, v in train_batch.items() if name.endswith("_weight")))
    was_deep, network.is_deep = network.is_deep, False
    network.eval()
    best: tuple[float, float, dict[str, Tensor]] | None = None
    path = []
    for strength in strengths:
        _minimise(network, train_batch, weights, biases, strength / n_episodes)
        with torch.no_grad():
            loss = float(total_loss(network.tasks, network(tuning_batch), tuning_batch))
        path.append((strength, loss))
        if best is None or loss < best[1]:
            best = (strength, loss, copy.deepcopy(network.state_dict()))
        elif len(path) - [s for s, _ in path].index(best[0]) > 2:
            break
    assert best is not None
    network.load_state_dict(best[2])
    network.is_deep = was_deep
    return WideFit(strength=best[0], path=tuple(path))


def _minimise(
    network: PatientTransformer, batch: Batch, weights: list[nn.Parameter], biases: list[nn.Parameter], penalty: float
) -> None:
    optimiser = torch.optim.LBFGS(
        weights + biases, max_iter=60, history_size=10, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = total_loss(network.tasks, network(batch), batch)
        loss = loss + 0.5 * penalty * torch.stack([w.square().sum() for w in weights]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    optimiser.zero_grad()


def _without_tokens(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if "token" not in name and not name.startswith("event_")}
