"""The longitudinal record -> tokens: code + value + time (log gap, and its decay at three half-lives).

No calendar date, and no position: order within a day is free. In training some codes of every batch are taken as
unknown and fall, without their values, to one of the codes above them, which is how those learn what new codes fall to.
Shapes: B patients, T events, W width, S summary columns, I ids of the vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ican_ml.model.blocks import input_layer
from ican_ml.records.vocabulary import FIRST_KNOWN, Vocabulary

_YEARS = 100.0
_HALF_LIVES = (14.0, 60.0, 240.0)


class RecordEmbedding(nn.Module):
    """One token an event, and one for the summary (record aggregates and covariates): ``[B, 1 + T, W]`` with a mask."""

    above: Tensor

    def __init__(
        self, vocabulary: Vocabulary | None, n_summary: int, width: int, dropout: float, code_dropout: float
    ) -> None:
        super().__init__()
        self.code_dropout = code_dropout
        above = vocabulary.general_ids() if vocabulary else np.arange(FIRST_KNOWN)[:, None]
        self.register_buffer("above", torch.from_numpy(above), persistent=False)
        n_codes = len(above)
        self.code = nn.Embedding(n_codes, width, padding_idx=0)
        nn.init.normal_(self.code.weight[1:], std=0.02)
        self.value = nn.Embedding(n_codes, width, padding_idx=0)
        nn.init.zeros_(self.value.weight)
        self.time = nn.Linear(len(_HALF_LIVES) + 4, width)
        self.summary = nn.Sequential(nn.Dropout(dropout), input_layer(n_summary, width), nn.LayerNorm(width))

    def forward(
        self,
        code_BT: Tensor,
        value_BT: Tensor,
        has_value_BT: Tensor,
        gap_BT: Tensor,
        age_BT: Tensor,
        summary_BS: Tensor,
    ) -> tuple[Tensor, Tensor]:
        if self.training and self.code_dropout > 0:
            code_BT, has_value_BT = self._generalised(code_BT, has_value_BT)
            value_BT = value_BT * has_value_BT
        static_BT = (gap_BT < 0).to(gap_BT.dtype)
        gap_BT = gap_BT.clamp(min=0)
        recent = [torch.exp2(-gap_BT / days) for days in _HALF_LIVES]
        time_BTN = torch.stack([torch.log1p(gap_BT) / 5, static_BT, age_BT / _YEARS, has_value_BT, *recent], dim=-1)
        events_BTW = self.code(code_BT) + self.value(code_BT) * value_BT[..., None] + self.time(time_BTN)
        tokens_BTW = torch.cat([self.summary(summary_BS)[:, None], events_BTW], dim=1)
        mask_BT = torch.cat([torch.ones_like(code_BT[:, :1], dtype=torch.bool), code_BT > 0], dim=1)
        return tokens_BTW, mask_BT

    def _generalised(self, code_BT: Tensor, has_value_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Events of the codes that this batch takes as unknown."""
        n_ids, depth = self.above.shape
        drawn_I = torch.randint(depth, (n_ids, 1), device=code_BT.device)
        unknown_I = torch.rand(n_ids, device=code_BT.device) < self.code_dropout
        own_I = torch.arange(n_ids, device=code_BT.device)
        given_I = torch.where(unknown_I, self.above.gather(1, drawn_I)[:, 0], own_I)
        return given_I[code_BT], has_value_BT * ~unknown_I[code_BT]
