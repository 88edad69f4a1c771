"""Where a patient lies among those of training: a few principal components of each modality and of the summary.

No gradient reaches it: the axes are fitted after training (:mod:`ican_ml.training.applicability`). It is exported with
the network as the output ``patient_embedding``, from which :mod:`ican_ml.evaluation.applicability` tells whether a
patient is like those the network knows. The heads' own hidden state cannot: it keeps what tells responders apart, and a
tumour of another kind may look like any other to it.

Shapes: B patients, K coordinates of a block, M modalities; the blocks are the modalities, then the summary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ican_ml.inputs.schema import InputSchema
from ican_ml.model.blocks import input_layer
from ican_ml.model.omics import FeatureBag

COORDINATES = 16


class PatientEmbedding(nn.Module):
    """``[B, (M + 1) * K + M]``: coordinates of variance 1 in training, then 1 for each modality that was measured.

    A modality that was not measured has coordinates 0.
    """

    shift: Tensor

    def __init__(self, schema: InputSchema) -> None:
        super().__init__()
        self.bags = nn.ModuleDict({m.name: FeatureBag(m, COORDINATES, zero=True) for m in schema.modalities})
        self.register_buffer("shift", torch.zeros(len(schema.modalities), COORDINATES))
        self.summary = input_layer(len(schema.summary_names), COORDINATES)
        nn.init.zeros_(self.summary.weight)
        nn.init.zeros_(self.summary.bias)
        self.requires_grad_(False)

    def forward(self, batch: dict[str, Tensor], scaled: dict[str, Tensor]) -> Tensor:
        """``scaled`` are the modalities' normalised values."""
        parts, measured = [], []
        for m, (name, bag) in enumerate(self.bags.items()):
            panel_B = batch[f"{name}_panel"]
            measured.append((panel_B > 0).to(self.shift.dtype)[:, None])
            assert isinstance(bag, FeatureBag)
            # Not the bag's own sum: it starts far from the mean, and what cancels takes digits with it.
            dense_BF = bag.dense(batch[f"{name}_indptr"], batch[f"{name}_indices"], scaled[name], panel_B)
            parts.append((dense_BF @ bag.weight + self.shift[m]) * measured[-1])
        return torch.cat([*parts, self.summary(batch["summary"]), *measured], dim=1)
