"""Resistance: altered genes that take from the drugs of a class what their targets promise; and each drug's own level.

What an altered target means the deep path learns from all drugs at once. Which of hundreds of genes takes that away
from the drugs of one class shows in a few dozen episodes, too few for gradient descent; so pairs of gene and class are
searched for one by one (:mod:`ican_ml.training.resistance`) and stand here in a table, zero elsewhere. What the targets
promise is the *gain*: what the linear and the deep path answer, less their answer were the targets not altered. The
logit of a binary task gets, averaged over the drugs of a regimen,

    level[drug] - gain * min(1, sum over the patient's altered features f of share[f, class of the drug])

Shapes: B patients, R regimens, D drugs, C drug classes, N tasks, M modalities, E = C * N.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ican_ml.encoding.csr_bag import csr_bag
from ican_ml.inputs.schema import FIRST_KNOWN, InputSchema

Batch = dict[str, Tensor]


class ResistancePath(nn.Module):
    """``[B, R, N]``, zero until it is fitted. Features are those of binary modalities: altered or not."""

    level: Tensor
    own_state: Tensor

    def __init__(self, schema: InputSchema) -> None:
        super().__init__()
        self.n_tasks, self.n_classes = len(schema.tasks), len(schema.classes) + FIRST_KNOWN
        self.modalities = [m.name for m in schema.modalities if m.kind == "binary"]
        for m in schema.modalities:
            if m.kind == "binary":
                self.register_buffer(f"share_{m.name}", torch.zeros(len(m.features), self.n_classes * self.n_tasks))
        self.register_buffer("level", torch.zeros(len(schema.drugs) + FIRST_KNOWN, self.n_tasks))
        own = [m.kind == "count" or (m.kind == "continuous" and m.explicit) for m in schema.modalities]
        self.register_buffer("own_state", torch.tensor(own, dtype=torch.float32), persistent=False)

    def unaltered(self, state_BRGM: Tensor) -> Tensor:
        """Raw values of target genes as an unaltered tumour has them: zero, but each its own expression."""
        return state_BRGM * self.own_state

    def forward(self, batch: Batch, gain_BRN: Tensor) -> Tensor:
        """``gain_BRN``: 0 for tasks that are not binary."""
        drug_BRD, class_BRD = batch["treatment_drug"], batch["treatment_class"]
        level_BRN = _mean(self.level[drug_BRD], drug_BRD)
        lost = []
        for name in self.modalities:
            altered = (batch[f"{name}_values"] != 0).to(gain_BRN.dtype)
            share = self.get_buffer(f"share_{name}")
            lost.append(csr_bag(batch[f"{name}_indptr"], batch[f"{name}_indices"], altered, share))
        if not lost:
            return level_BRN
        lost_BCN = torch.stack(lost).sum(0).clamp(max=1).reshape(-1, self.n_classes, self.n_tasks)
        at = class_BRD.flatten(1)[..., None].expand(-1, -1, self.n_tasks)
        lost_BRDN = lost_BCN.gather(1, at).reshape(*class_BRD.shape, self.n_tasks)
        return level_BRN - _mean(lost_BRDN, class_BRD) * gain_BRN


def _mean(values_BRDN: Tensor, ids_BRD: Tensor) -> Tensor:
    """``[B, R, N]``: the mean over what is not padding."""
    real_BRD1 = (ids_BRD > 0).to(values_BRDN.dtype)[..., None]
    return (values_BRDN * real_BRD1).sum(2) / real_BRD1.sum(2).clamp(min=1)
