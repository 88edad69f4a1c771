"""A network of its own over the columns that the trees split on: standardised and clipped, missing ones at the mean.

Each category that has trees of its own weighs the columns by itself. The path is trained on the outcome, by itself
(:mod:`ican_ml.training.columns`), so that it errs in other ways than the trees and what is built upon them; their
logits are averaged. Shapes: M episodes, B patients, R regimens, F values, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ican_ml.inputs.schema import Task
from ican_ml.model.deep import head_width
from ican_ml.model.trees import MISSING

SHARE = 0.25
_DROPOUT = 0.6
_CLIP = 4.0
_SHAPE = 0.3
_LITTLE = 1e-6


class ColumnsPath(nn.Module):
    """One perceptron a member, zero until it is fitted; its parameters take no part in other training."""

    mean: Tensor
    factor: Tensor

    def __init__(self, tasks: Sequence[Task], n_values: int, categories: int, width: int, members: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_values))
        self.register_buffer("factor", torch.zeros(n_values))
        self.members = nn.ModuleList(Columns(tasks, n_values, categories, width) for _ in range(members))
        self.requires_grad_(False)

    def set_scale(self, values_MF: Tensor) -> None:
        """Standardise by the known values of training."""
        known_MF = values_MF > MISSING
        n_F = known_MF.sum(0).clamp(min=1)
        mean_F = (values_MF * known_MF).sum(0) / n_F
        deviation_F = (((values_MF - mean_F) * known_MF).square().sum(0) / n_F).sqrt()
        self.mean.copy_(mean_F)
        self.factor.copy_(torch.where(deviation_F > _LITTLE, 1 / deviation_F.clamp(min=_LITTLE), 0.0))

    def scaled(self, values_BRF: Tensor) -> Tensor:
        """What the members see."""
        known_BRF = values_BRF > MISSING
        return torch.where(known_BRF, (values_BRF - self.mean) * self.factor, 0.0).clamp(-_CLIP, _CLIP)

    def forward(self, values_BRF: Tensor, group_BR: Tensor) -> list[dict[str, Tensor]]:
        """What each member says, by task ``[B, R, outputs]``."""
        seen_BRF = self.scaled(values_BRF)
        return [member(seen_BRF, group_BR) for member in self.members]


class Columns(nn.Module):
    """A perceptron of two layers."""

    def __init__(self, tasks: Sequence[Task], n_values: int, categories: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(categories, n_values))
        self.category = nn.Embedding(categories, width)
        self.first = nn.Linear(n_values, width)
        self.second = nn.Linear(width, width)
        self.bias = nn.ParameterDict({task.name: nn.Parameter(torch.zeros(head_width(task))) for task in tasks})
        self.heads = nn.ModuleDict({task.name: nn.Linear(width, head_width(task)) for task in tasks})
        self.level = nn.ModuleDict({task.name: nn.Linear(width, 1) for task in tasks if task.kind == "survival"})
        self.reset({name: bias.detach() for name, bias in self.bias.items()})

    def reset(self, start: Mapping[str, Tensor]) -> None:
        """Start anew: everyone is told ``start``, by task ``[outputs]``."""
        for layer in (self.first, self.second):
            layer.reset_parameters()
        nn.init.ones_(self.weight)
        with torch.no_grad():
            for part in (self.category, *self.heads.values(), *self.level.values()):
                for parameter in part.parameters():
                    parameter.zero_()
            for name, bias in self.bias.items():
                bias.copy_(start[name])

    def forward(self, seen_BRF: Tensor, group_BR: Tensor) -> dict[str, Tensor]:
        """By task ``[B, R, outputs]``."""
        kept_BRF = functional.dropout(seen_BRF * self.weight[group_BR], _DROPOUT / 2, self.training)
        hidden_BRW = functional.silu(self.first(kept_BRF) + self.category(group_BR))
        hidden_BRW = functional.silu(self.second(functional.dropout(hidden_BRW, _DROPOUT, self.training)))
        hidden_BRW = functional.dropout(hidden_BRW, _DROPOUT, self.training)
        said = {}
        for name, head in self.heads.items():
            out = head(hidden_BRW)
            if name in self.level:  # hazards differ in level first, and in shape by little
                out = self.level[name](hidden_BRW) + _SHAPE * out
            said[name] = self.bias[name] + out
        return said
