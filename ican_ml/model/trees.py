"""Boosted trees as tensors: complete binary trees over what the batch says exactly, added to the linear scores.

A tree of depth D is 2^D - 1 splits in the order of a heap, and 2^D leaves; it goes right where the value is at least
the threshold. The trees are grown by XGBoost (:mod:`ican_ml.training.trees`) and evaluated here by D lookups, so that
they export with the network. They see no sums over features, whose last bit differs between machines and could turn a
split: only the summary, each feature of narrow modalities, the drugs and their targets' state, each by itself.

Each member of the network's ensemble has trees of its own. A task's score mixes the trees of all tasks: where one
outcome is known of few and another of many, or the one is the other cut in two, each tells of both. Beside the trees of
all patients, each category of a covariate (an indication, say) may have trees grown on its own patients; the score is
the mean of both.

Shapes: B patients, R regimens, F values, N tasks, E members, C categories, T trees, M = B * R.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ican_ml.inputs.schema import FIRST_KNOWN, InputSchema
from ican_ml.model.omics import centre, row_of_entry

Batch = dict[str, Tensor]
MISSING = -11.0  # below every normalised value
_WIDEST = 2048


class TreePath(nn.Module):
    """``trees`` trees of each task and member, and as many of each category of the covariate ``by``.

    All leaves are zero until they are grown. ``ValueError``, if the schema has no such covariate.
    """

    feature: Tensor
    threshold: Tensor
    leaf: Tensor
    mix: Tensor

    def __init__(self, schema: InputSchema, trees: int, depth: int, members: int, by: str | None = None) -> None:
        super().__init__()
        self.depth = depth
        self.categories = _summary_columns(schema, by) if by is not None else range(0)
        narrow = [m for m in schema.modalities if len(m.features) <= _WIDEST]
        self.modalities = [m.name for m in narrow]
        self.n_drugs, self.n_classes = len(schema.drugs) + FIRST_KNOWN, len(schema.classes) + FIRST_KNOWN
        widths = (len(m.features) for m in narrow)
        self.n_values = len(schema.summary_names) + sum(widths) + self.n_drugs + self.n_classes + 1
        self.n_values += len(schema.modalities)
        for m in narrow:
            self.register_buffer(f"known_{m.name}", torch.tensor(m.measured() & (not m.explicit)), persistent=False)
            self.register_buffer(f"zero_{m.name}", -centre(m), persistent=False)
        shape = (len(schema.tasks), members, 1 + len(self.categories), trees)
        self.register_buffer("feature", torch.zeros(*shape, 2**depth - 1, dtype=torch.int64))
        self.register_buffer("threshold", torch.full((*shape, 2**depth - 1), torch.inf))
        self.register_buffer("leaf", torch.zeros(*shape, 2**depth))
        self.register_buffer("mix", torch.eye(len(schema.tasks)))

    def values(self, batch: Batch, centred: dict[str, Tensor], state_BRGM: Tensor) -> Tensor:
        """``[B, R, F]``: what the trees split on.

        ``centred`` are the stored features' normalised values by modality, ``state_BRGM`` the targets'.
        """
        summary_BS = batch["summary"]
        patient = [torch.where(summary_BS == 0, MISSING, summary_BS)]
        for name in self.modalities:
            panel_B, indices = batch[f"{name}_panel"], batch[f"{name}_indices"]
            known_BF = self.get_buffer(f"known_{name}")[panel_B]
            dense_BF = torch.where(known_BF, self.get_buffer(f"zero_{name}"), MISSING)
            at = row_of_entry(batch[f"{name}_indptr"], indices) * dense_BF.shape[1] + indices
            patient.append(dense_BF.flatten().scatter(0, at, centred[name]).reshape(dense_BF.shape))
        patient_BF = torch.cat(patient, dim=1)
        drug_BRD, class_BRD = batch["treatment_drug"], batch["treatment_class"]
        real_BRG = batch["treatment_gene"] > 0
        known_BRGM = batch["treatment_state_known"] * real_BRG[..., None]
        most_BRM = torch.where(known_BRGM > 0, state_BRGM, MISSING).amax(2)
        treatment = [
            _counts(drug_BRD, self.n_drugs),
            _counts(class_BRD, self.n_classes),
            (drug_BRD > 0).sum(2, keepdim=True).to(most_BRM.dtype),
            most_BRM,
        ]
        treatment_BRF = torch.cat(treatment, dim=2)
        return torch.cat([patient_BF[:, None].expand(-1, treatment_BRF.shape[1], -1), treatment_BRF], dim=2)

    def forward(self, values_BRF: Tensor) -> Tensor:
        """``[B, R, E, N]``: the sums of each member's trees, mixed."""
        values_MF = values_BRF.flatten(0, 1)
        sum_MNE = self._sums(values_MF, None)
        if self.categories:
            sum_MNE = (sum_MNE + self._sums(values_MF, self.group(values_MF))) / 2
        return sum_MNE.reshape(*values_BRF.shape[:2], *sum_MNE.shape[1:]).transpose(2, 3) @ self.mix

    def group(self, values_MF: Tensor) -> Tensor:
        """int64 ``[M]``: whose trees are asked beside those of all, 1 + category; 0 = none of the known ones."""
        if not self.categories:
            return torch.zeros(len(values_MF), dtype=torch.int64, device=values_MF.device)
        is_in_MC = values_MF[:, self.categories.start : self.categories.stop] > 0
        number_C = torch.arange(1, 1 + len(self.categories), device=values_MF.device)
        return (is_in_MC.to(torch.int64) * number_C).amax(1)

    def _sums(self, values_MF: Tensor, group_M: Tensor | None) -> Tensor:
        """``[M, N, E]``: the sums of the trees of all, or of each row's group."""
        n_tasks, members, groups, trees, splits = self.feature.shape
        device = values_MF.device
        tree_A = torch.arange(n_tasks * members, device=device)[:, None] * groups * trees
        tree_A = (tree_A + torch.arange(trees, device=device)).flatten()
        tree_MA = tree_A if group_M is None else tree_A + group_M[:, None] * trees
        node_MA = torch.zeros(values_MF.shape[0], len(tree_A), dtype=torch.int64, device=device)
        for _ in range(self.depth):
            at_MA = tree_MA * splits + node_MA
            value_MA = values_MF.gather(1, self.feature.flatten()[at_MA])
            node_MA = 2 * node_MA + 1 + (value_MA >= self.threshold.flatten()[at_MA]).to(torch.int64)
        leaf_MA = self.leaf.flatten()[tree_MA * (splits + 1) + node_MA - splits]
        return leaf_MA.reshape(-1, n_tasks, members, trees).sum(-1)


def _summary_columns(schema: InputSchema, covariate: str) -> range:
    """Where the categories of a covariate lie in the summary, which is standardised: present is above 0."""
    known = {each.name: each.columns for each in schema.covariates if each.categories}
    if covariate not in known:
        raise ValueError(
            f"model.trees_by: expected a covariate of categories among {sorted(known)}, got {covariate!r}; "
            "name it in inputs.covariates"
        )
    first = schema.summary_names.index(known[covariate][0])
    return range(first, first + len(known[covariate]))


def _counts(ids_BRD: Tensor, n: int) -> Tensor:
    """``[B, R, n]``: how often each id occurs; padding not."""
    zeros = torch.zeros(*ids_BRD.shape[:2], n, device=ids_BRD.device)
    return zeros.scatter_add(2, ids_BRD, (ids_BRD > 0).to(zeros.dtype))
