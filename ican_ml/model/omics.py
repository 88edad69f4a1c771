"""Omics modalities -> tokens: the k most telling features, and one bag over every feature.

Shapes: B patients, K tokens, W width, F features, P assays + 1. A feature's embedding is its gene's, shared by all
modalities and by drug targets. Values are normalised here, not in the inputs: counts to log1p(v * 1e4 / row sum), then
(v - mean) / sd, clipped to +-10.

In a sparse modality an absent feature is a measured zero, whose normalised value is -mean/sd. The bag adds that
constant by assay (``offset``): a measured zero counts, a feature that the assay does not measure contributes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ican_ml.encoding.csr_bag import csr_bag
from ican_ml.inputs.schema import ModalitySchema

_LIMIT = 10.0
_TARGET_SUM = 1e4


class FeatureScale(nn.Module):
    """Normalise raw values of given features; holds the training statistics as buffers."""

    mean: Tensor
    inverse_sd: Tensor
    centre: Tensor

    def __init__(self, schema: ModalitySchema) -> None:
        super().__init__()
        self.is_count = schema.kind == "count"
        self.register_buffer("mean", torch.tensor(schema.mean))
        self.register_buffer("inverse_sd", torch.tensor(schema.inverse_sd))
        self.register_buffer("centre", centre(schema))

    def forward(self, values: Tensor, features: Tensor, total: Tensor, *, centred: bool = True) -> Tensor:
        """Normalised values; ``values``, ``features`` and ``total`` (the row's sum) share one shape.

        Not ``centred``: their distance from the normalised zero, which is what an entry adds to its feature's absence.
        """
        if self.is_count:
            values = torch.log1p(values * (_TARGET_SUM / total.clamp(min=1e-6)))
        scaled = ((values - self.mean[features]) * self.inverse_sd[features]).clamp(-_LIMIT, _LIMIT)
        return scaled if centred else scaled + self.centre[features]


def centre(schema: ModalitySchema) -> Tensor:
    """float32 [features]: how far the mean lies above zero, in sd and clipped as values are."""
    return torch.tensor(schema.mean * schema.inverse_sd).clamp(-_LIMIT, _LIMIT)


def row_of_entry(indptr: Tensor, indices: Tensor) -> Tensor:
    """int64 [nnz]: the row of each stored entry, in operations that export: a cumulative count of row starts."""
    starts = torch.zeros(indices.shape[0] + 1, dtype=torch.int64, device=indices.device)
    starts = starts.scatter_add(0, indptr[1:-1], torch.ones_like(indptr[1:-1]))
    return starts.cumsum(0)[:-1]


class FeatureBag(nn.Module):
    """Weighted sum over every feature of a modality: ``[B, width]``; a patient without it gets zeros."""

    offset: Tensor

    def __init__(self, schema: ModalitySchema, width: int, *, zero: bool = False) -> None:
        super().__init__()
        n_features = len(schema.features)
        spread = 0.0 if zero else n_features**-0.5
        self.explicit = schema.explicit
        self.weight = nn.Parameter(torch.randn(n_features, width) * spread)
        measured = torch.tensor(schema.measured(), dtype=torch.float32)
        self.register_buffer("offset", measured * (0.0 if schema.explicit else centre(schema)))

    def forward(self, indptr: Tensor, indices: Tensor, scaled: Tensor, panel_B: Tensor) -> Tensor:
        """``scaled`` [nnz] comes from :class:`FeatureScale`, centred only where the modality is explicit."""
        bag_BW: Tensor = csr_bag(indptr, indices, scaled, self.weight)
        if not self.explicit:
            bag_BW = bag_BW - (self.offset @ self.weight)[panel_B]
        return bag_BW * (panel_B > 0)[:, None]

    def dense(self, indptr: Tensor, indices: Tensor, scaled: Tensor, panel_B: Tensor) -> Tensor:
        """``[B, F]``: what the weights are summed over."""
        dense_BF = -self.offset[panel_B]
        at = row_of_entry(indptr, indices) * dense_BF.shape[1] + indices
        return dense_BF.flatten().scatter_add(0, at, scaled).reshape(dense_BF.shape)


class OmicsEmbedding(nn.Module):
    """One modality: its bag token and its feature tokens, ``[B, 1 + K, W]`` with a mask."""

    feature_gene: Tensor

    def __init__(self, schema: ModalitySchema, gene_id: dict[str, int], width: int, dropout: float) -> None:
        super().__init__()
        genes = [0, *(gene_id[gene] for gene in schema.genes)]
        self.register_buffer("feature_gene", torch.tensor(genes, dtype=torch.int64))
        self.bag = FeatureBag(schema, width)
        self.bag_norm = nn.Sequential(nn.LayerNorm(width), nn.Dropout(dropout))
        self.kind = nn.Parameter(torch.randn(width) * 0.02)
        self.value = nn.Parameter(torch.randn(width) * 0.02)
        self.value_gate = nn.Parameter(torch.zeros(width))

    def forward(
        self, genes: nn.Embedding, bag_BW: Tensor, tokens_BK: Tensor, scaled_BK: Tensor, panel_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``scaled_BK`` are the normalised values of ``tokens_BK`` (feature + 1, 0 = padding)."""
        scaled_BK1 = scaled_BK[..., None]
        tokens_BKW = genes(self.feature_gene[tokens_BK]) * (1 + scaled_BK1 * self.value_gate) + scaled_BK1 * self.value
        all_BTW = torch.cat([self.bag_norm(bag_BW)[:, None], tokens_BKW], dim=1) + self.kind
        mask_BT = torch.cat([torch.ones_like(tokens_BK[:, :1], dtype=torch.bool), tokens_BK > 0], dim=1)
        return all_BTW, mask_BT & (panel_B > 0)[:, None]
