"""Treatment queries: a regimen is a set of drugs; a drug is its identity, its class, and the genes it targets.

Shapes: B patients, R regimens, D drugs, G target genes, M modalities, W width. A query carries the shared embeddings of
its target genes and the patient's own state at them (normalised value and "measured" flag by modality), so that a drug
without identity, the virtual inhibitor of a gene, is a query like any other. In training the identity is dropped at
random, which is how unseen drugs are learned. Queries never see one another: the answer does not depend on what else is
asked.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TreatmentQuery(nn.Module):
    """``[B, R, W]`` queries from the regimens' inputs."""

    def __init__(
        self, n_drugs: int, n_classes: int, n_modalities: int, width: int, dropout: float, identity_dropout: float
    ) -> None:
        super().__init__()
        self.identity_dropout = identity_dropout
        self.drug = nn.Embedding(n_drugs, width, padding_idx=0)
        self.drug_class = nn.Embedding(n_classes, width, padding_idx=0)
        for table in (self.drug, self.drug_class):
            nn.init.normal_(table.weight[1:], std=0.02)
        self.base = nn.Parameter(torch.randn(width) * 0.02)
        self.state = nn.Sequential(
            nn.Linear(width + 2 * n_modalities, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Dropout(dropout),
        )
        self.target = nn.Linear(2 * width, width)

    def forward(
        self,
        genes: nn.Embedding,
        drug_BRD: Tensor,
        class_BRD: Tensor,
        gene_BRG: Tensor,
        state_BRGM: Tensor,
        known_BRGM: Tensor,
    ) -> tuple[Tensor, Tensor]:
        if self.training and self.identity_dropout > 0:
            kept = torch.rand(drug_BRD.shape, device=drug_BRD.device) >= self.identity_dropout
            drug_BRD = torch.where(kept, drug_BRD, drug_BRD.clamp(max=1))
        real_BRG1 = (gene_BRG > 0).to(state_BRGM.dtype)[..., None]
        state_BRGW = self.state(torch.cat([genes(gene_BRG), state_BRGM, known_BRGM], dim=-1)) * real_BRG1
        most_BRW = (state_BRGW + (real_BRG1 - 1)).amax(2)  # padding becomes -1, below every GELU, and never the maximum
        target_BRW = self.target(torch.cat([most_BRW, state_BRGW.sum(2) / real_BRG1.sum(2).clamp(min=1)], dim=-1))
        query_BRW = self.base + self.drug(drug_BRD).sum(2) + self.drug_class(class_BRD).sum(2) + target_BRW
        return query_BRW, target_BRW


class TargetState(nn.Module):
    """Normalised value of each target gene in each modality, from the raw values: ``[B, R, G, M]``."""

    def __init__(self, feature_of_gene: list[Tensor]) -> None:
        super().__init__()
        for m, feature in enumerate(feature_of_gene):
            self.register_buffer(f"feature_{m}", feature.clamp(min=0))

    def forward(
        self, scales: nn.ModuleDict, totals: list[Tensor], gene_BRG: Tensor, state_BRGM: Tensor, known_BRGM: Tensor
    ) -> Tensor:
        """``scales`` and ``totals`` in the order of the last axis of ``state_BRGM``."""
        columns = []
        for m, (scale, total_B) in enumerate(zip(scales.values(), totals, strict=True)):
            feature_BRG = self.get_buffer(f"feature_{m}")[gene_BRG]
            scaled = scale(state_BRGM[..., m], feature_BRG, total_B[:, None, None])
            columns.append(scaled * known_BRGM[..., m])
        return torch.stack(columns, dim=-1) if columns else state_BRGM
