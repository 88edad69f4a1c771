"""Transformer blocks over padded tokens: pre-norm attention, then feed-forward.

Shapes: B patients, Q query tokens, K key tokens, W width, H heads, E = W / H. Hand-written over
``scaled_dot_product_attention`` with a boolean mask, so that it exports to ONNX opset 20. The caller sees to it that
every row has at least one real key. Dropout is in the feed-forward only: attention then runs in one fused kernel
(Vaswani et al. 2017, arXiv:1706.03762; pre-norm: Xiong et al. 2020, arXiv:2002.04745).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def input_layer(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer that may have no inputs at all (a cohort without records and covariates)."""
    layer = nn.Linear(max(inputs, 1), outputs, bias=bias)
    if not inputs:
        layer.in_features, layer.weight = 0, nn.Parameter(torch.empty(outputs, 0))
    return layer


class Attention(nn.Module):
    """Multi-head attention from queries [B, Q, W] to keys [B, K, W]; ``mask_BK`` is True where a key is real."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, query_BQW: Tensor, key_BKW: Tensor, mask_BK: Tensor) -> Tensor:
        key_BKW, value_BKW = self.key_value(key_BKW).chunk(2, dim=-1)
        attended_BHQE = functional.scaled_dot_product_attention(
            self._split(self.query(query_BQW)),
            self._split(key_BKW),
            self._split(value_BKW),
            attn_mask=mask_BK[:, None, None, :],
        )
        out: Tensor = self.out(attended_BHQE.transpose(1, 2).flatten(2))
        return out

    def _split(self, tokens_BTW: Tensor) -> Tensor:
        batch, length, width = tokens_BTW.shape
        return tokens_BTW.reshape(batch, length, self.heads, width // self.heads).transpose(1, 2)


class Block(nn.Module):
    """Attention and feed-forward. With ``context`` (normalised by the caller) the tokens attend to it, otherwise to
    one another."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, tokens_BTW: Tensor, mask_BK: Tensor, context_BKW: Tensor | None = None) -> Tensor:
        query_BTW = self.norm(tokens_BTW)
        key_BKW = query_BTW if context_BKW is None else context_BKW
        tokens_BTW = tokens_BTW + self.attention(query_BTW, key_BKW, mask_BK)
        out: Tensor = tokens_BTW + self.feed_forward(tokens_BTW)
        return out
