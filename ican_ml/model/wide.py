"""The linear path: a weight on every column of the summary, feature, drug and state of a target.

Shapes: B patients, R regimens, G target genes, M modalities, N tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ican_ml.inputs.schema import FIRST_KNOWN, InputSchema
from ican_ml.model.blocks import input_layer
from ican_ml.model.omics import FeatureBag

Batch = dict[str, Tensor]
_EARLIER_SHARE = 5.0


class WidePath(nn.Module):
    """The linear path: one score per task, patient and treatment, zero until it is fitted.

    One ridge penalty serves all blocks: that of a modality with many features is made heavier by scaling its score, so
    that two thousand genes do not outweigh a few dozen clinical columns. ``at_par`` is how many features weigh as one
    column would: see :class:`ModelConfig`.
    """

    def __init__(self, schema: InputSchema, n_earlier: int, at_par: float) -> None:
        super().__init__()
        n_tasks = len(schema.tasks)
        self.earlier = nn.Parameter(torch.zeros(n_earlier, n_tasks)) if n_earlier else None
        self.summary = input_layer(len(schema.summary_names), n_tasks, bias=False)
        self.bags = nn.ModuleDict({m.name: FeatureBag(m, n_tasks, zero=True) for m in schema.modalities})
        self.shares = [min(1.0, (at_par / len(m.features)) ** 0.5) for m in schema.modalities]
        self.present = nn.Parameter(torch.zeros(len(schema.modalities), n_tasks))
        self.drug = nn.Embedding(len(schema.drugs) + FIRST_KNOWN, n_tasks, padding_idx=0)
        self.drug_class = nn.Embedding(len(schema.classes) + FIRST_KNOWN, n_tasks, padding_idx=0)
        self.state = nn.Parameter(torch.zeros(2 * len(schema.modalities), n_tasks))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, batch: Batch, scaled: dict[str, Tensor], state_BRGM: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, tasks]`` of the patient and ``[B, R, tasks]`` of the treatments; the score is their sum.

        ``scaled`` are the modalities' normalised values, ``state_BRGM`` the targets'. The batch may bring what an
        earlier network answers, which hardly feels the penalty.
        """
        patient_BN = self.summary(batch["summary"])
        for m, (name, bag) in enumerate(self.bags.items()):
            panel_B = batch[f"{name}_panel"]
            bag_BN = bag(batch[f"{name}_indptr"], batch[f"{name}_indices"], scaled[name], panel_B)
            patient_BN = patient_BN + bag_BN * self.shares[m] + (panel_B > 0)[:, None] * self.present[m]
        drug_BRN = self.drug(batch["treatment_drug"]).sum(2) + self.drug_class(batch["treatment_class"]).sum(2)
        treatment_BRN = drug_BRN + self.targets(batch, state_BRGM)
        if self.earlier is not None:
            treatment_BRN = (
                treatment_BRN + batch["earlier"][:, : treatment_BRN.shape[1]] @ self.earlier * _EARLIER_SHARE
            )
        return patient_BN, treatment_BRN

    def targets(self, batch: Batch, state_BRGM: Tensor) -> Tensor:
        """``[B, R, tasks]``: what the state of the targets adds, their mean."""
        real_BRG1 = (batch["treatment_gene"] > 0).to(state_BRGM.dtype)[..., None]
        state_BRN = (torch.cat([state_BRGM, batch["treatment_state_known"]], -1) @ self.state * real_BRG1).sum(2)
        return state_BRN / real_BRG1.sum(2).clamp(min=1)
