"""PatientTransformer: omics and record encoded once, then asked about every candidate treatment.

    omics modalities -> bag + tokens -> modality encoder -+
    record           -> summary + events -> encoder ------+-> bottleneck tokens -> fused patient
    regimens         -> queries ---- cross-attention to bottleneck and tokens ----> heads
    wide path        : summary, bags, drugs, target state -- linear --------------> added to every head

The bottleneck follows Nagrani et al. 2021 (arXiv:2107.00135). The linear ("wide") path is fitted first, by penalised
maximum likelihood, and the deep heads start at zero: the deep path has to earn what it adds (Cheng et al. 2016,
arXiv:1606.07792). Inputs: the arrays of :mod:`ican_ml.inputs.encode`. Shapes: B patients, R regimens, T tokens, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ican_ml.inputs.schema import FIRST_KNOWN, InputSchema, Task
from ican_ml.model.blocks import Block
from ican_ml.model.omics import FeatureBag, FeatureScale, OmicsEmbedding
from ican_ml.model.record import RecordEmbedding
from ican_ml.model.treatment import TargetState, TreatmentQuery

Batch = dict[str, Tensor]


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Size and regularisation of the network. ``width`` must be divisible by ``heads``."""

    width: int = 64
    heads: int = 4
    omics_layers: int = 1
    record_layers: int = 1
    fusion_layers: int = 1
    query_layers: int = 1
    bottleneck_tokens: int = 8
    dropout: float = 0.1
    modality_dropout: float = 0.05
    identity_dropout: float = 0.1
    deep: bool = True

    def __post_init__(self) -> None:
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ValueError(f"model.width: expected a multiple of model.heads ({self.heads}), got {self.width}")
        for name in ("dropout", "modality_dropout", "identity_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name}: expected a probability in [0, 1), got {getattr(self, name)}")


def head_width(task: Task) -> int:
    """Outputs of a task's deep head: logit, hazard logit by interval, or mean and log variance."""
    return {"binary": 1, "regression": 2, "survival": len(task.edges)}[task.kind]


class WidePath(nn.Module):
    """The linear path: one score per task and regimen, zero until it is fitted."""

    def __init__(self, schema: InputSchema) -> None:
        super().__init__()
        n_tasks = len(schema.tasks)
        self.summary = nn.Linear(len(schema.summary_names), n_tasks, bias=False)
        self.bags = nn.ModuleDict({m.name: FeatureBag(m, n_tasks, zero=True) for m in schema.modalities})
        self.present = nn.Parameter(torch.zeros(len(schema.modalities), n_tasks))
        self.drug = nn.Embedding(len(schema.drugs) + FIRST_KNOWN, n_tasks, padding_idx=0)
        self.drug_class = nn.Embedding(len(schema.classes) + FIRST_KNOWN, n_tasks, padding_idx=0)
        self.state = nn.Linear(2 * len(schema.modalities), n_tasks, bias=False)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, batch: Batch, scaled: dict[str, Tensor], state_BRGM: Tensor) -> Tensor:
        """``[B, R, tasks]``; ``scaled`` are the modalities' normalised values, ``state_BRGM`` the targets'."""
        patient_BN = self.summary(batch["summary"])
        for m, (name, bag) in enumerate(self.bags.items()):
            panel_B = batch[f"{name}_panel"]
            patient_BN = patient_BN + bag(batch[f"{name}_indptr"], batch[f"{name}_indices"], scaled[name], panel_B)
            patient_BN = patient_BN + (panel_B > 0)[:, None] * self.present[m]
        known_BRGM = batch["treatment_state_known"]
        real_BRG1 = (batch["treatment_gene"] > 0).to(state_BRGM.dtype)[..., None]
        state_BRN = (self.state(torch.cat([state_BRGM, known_BRGM], -1)) * real_BRG1).sum(2)
        drug_BRN = self.drug(batch["treatment_drug"]).sum(2) + self.drug_class(batch["treatment_class"]).sum(2)
        return patient_BN[:, None] + drug_BRN + state_BRN / real_BRG1.sum(2).clamp(min=1)


class PatientTransformer(nn.Module):
    """See the module docstring. ``forward`` maps the input arrays to one output a task (logits, hazards, mean + variance)."""

    def __init__(self, config: ModelConfig, schema: InputSchema) -> None:
        super().__init__()
        width, heads, dropout = config.width, config.heads, config.dropout
        self.tasks = schema.tasks
        self.modality_dropout = config.modality_dropout
        self.is_deep = config.deep
        self.scales = nn.ModuleDict({m.name: FeatureScale(m) for m in schema.modalities})
        self.explicit = {m.name: m.explicit for m in schema.modalities}
        self.target_state = TargetState([torch.tensor(schema.feature_of_gene(m)) for m in schema.modalities])
        self.wide = WidePath(schema)
        self.bias = nn.ParameterDict({t.name: nn.Parameter(torch.zeros(head_width(t))) for t in schema.tasks})
        if not config.deep:
            return
        self.genes = nn.Embedding(schema.n_genes, width, padding_idx=0)
        nn.init.normal_(self.genes.weight, std=0.02)
        self.omics = nn.ModuleDict({m.name: OmicsEmbedding(m, schema.gene_id, width, dropout) for m in schema.modalities})
        n_codes = schema.vocabulary.n_ids if schema.vocabulary else FIRST_KNOWN
        self.record = RecordEmbedding(n_codes, len(schema.summary_names), width, dropout)
        self.encoders = nn.ModuleDict(
            {
                name: nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
                for name, layers in [*((m, config.omics_layers) for m in self.omics), ("record", config.record_layers)]
            }
        )
        self.context_norm = nn.LayerNorm(width)
        self.fused_norm = nn.LayerNorm(width)
        self.bottleneck = nn.Parameter(torch.randn(config.bottleneck_tokens, width) * 0.02)
        self.fusion = nn.ModuleList(Block(width, heads, dropout) for _ in range(config.fusion_layers))
        self.treatment = TreatmentQuery(
            len(schema.drugs) + FIRST_KNOWN, len(schema.classes) + FIRST_KNOWN, len(schema.modalities),
            width, dropout, config.identity_dropout,
        )
        self.query_blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(config.query_layers))
        self.heads = nn.ModuleDict({task.name: self._head(width, head_width(task), dropout) for task in schema.tasks})

    @staticmethod
    def _head(width: int, outputs: int, dropout: float) -> nn.Sequential:
        last = nn.Linear(width, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(2 * width, width), nn.GELU(), last,
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Binary ``[B, R]`` logits, survival ``[B, R, bins]`` hazard logits, regression ``[B, R, 2]``."""
        if self.training and self.modality_dropout > 0:
            batch = self._drop_modalities(batch)
        scaled, state_BRGM = self.normalise(batch)
        deep = self._deep(batch, scaled, state_BRGM) if self.is_deep else {}
        return self.outputs(self.wide(batch, scaled, state_BRGM), deep)

    def normalise(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Normalised values of every stored feature by modality, and of the target genes ``[B, R, G, M]``."""
        totals = [batch[f"{name}_total"] for name in self.scales]
        state_BRGM = self.target_state(
            self.scales, totals, batch["treatment_gene"], batch["treatment_state"], batch["treatment_state_known"]
        )
        return self._scale_features(batch), state_BRGM

    def outputs(self, wide_BRN: Tensor, deep: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bias + linear score + what the deep heads add, by task."""
        outputs = {}
        for n, task in enumerate(self.tasks):
            score_BR1 = wide_BRN[..., n : n + 1]
            if task.kind == "regression":
                score_BR1 = functional.pad(score_BR1, (0, 1))
            out = self.bias[task.name] + deep.get(task.name, 0.0) + score_BR1
            if task.kind == "regression":
                out = torch.stack(
                    [task.centre + task.scale * out[..., 0], out[..., 1] + 2 * math.log(task.scale)], dim=-1
                )
            outputs[task.name] = out.squeeze(-1) if task.kind == "binary" else out
        return outputs

    def _scale_features(self, batch: Batch) -> dict[str, Tensor]:
        scaled = {}
        for name, scale in self.scales.items():
            indptr = batch[f"{name}_indptr"]
            total = batch[f"{name}_total"]
            if scale.is_count:
                total = _expand_rows(total, indptr, batch[f"{name}_indices"])
            scaled[name] = scale(
                batch[f"{name}_values"], batch[f"{name}_indices"], total, centred=self.explicit[name]
            )
        return scaled

    def _deep(self, batch: Batch, scaled: dict[str, Tensor], state_BRGM: Tensor) -> dict[str, Tensor]:
        tokens, masks = [], []
        for name, embed in self.omics.items():
            panel_B, tokens_BK = batch[f"{name}_panel"], batch[f"{name}_tokens"]
            bag_BW = embed.bag(batch[f"{name}_indptr"], batch[f"{name}_indices"], scaled[name], panel_B)
            scaled_BK = self.scales[name](
                batch[f"{name}_token_values"], (tokens_BK - 1).clamp(min=0), batch[f"{name}_total"][:, None]
            )
            self._encode(name, *embed(self.genes, bag_BW, tokens_BK, scaled_BK, panel_B), tokens, masks)
        record = self.record(
            batch["event_code"], batch["event_value"], batch["event_has_value"], batch["event_gap"], batch["event_age"],
            batch["summary"],
        )
        self._encode("record", *record, tokens, masks)
        context_BTW, mask_BT = self.context_norm(torch.cat(tokens, dim=1)), torch.cat(masks, dim=1)
        fused_BZW = self.bottleneck.expand(context_BTW.shape[0], -1, -1)
        for block in self.fusion:
            fused_BZW = block(fused_BZW, mask_BT, context_BTW)
        context_BTW = torch.cat([self.fused_norm(fused_BZW), context_BTW], dim=1)
        mask_BT = functional.pad(mask_BT, (self.bottleneck.shape[0], 0), value=True)
        query_BRW = self.treatment(
            self.genes, batch["treatment_drug"], batch["treatment_class"], batch["treatment_gene"], state_BRGM,
            batch["treatment_state_known"],
        )
        for block in self.query_blocks:
            query_BRW = block(query_BRW, mask_BT, context_BTW)
        return {name: head(query_BRW) for name, head in self.heads.items()}

    def _encode(
        self, name: str, tokens_BTW: Tensor, mask_BT: Tensor, tokens: list[Tensor], masks: list[Tensor]
    ) -> None:
        """Run a modality's encoder; a patient without it attends to its first token, which the fusion then masks."""
        any_BT = torch.cat([torch.ones_like(mask_BT[:, :1]), mask_BT[:, 1:]], dim=1)
        for block in self.encoders[name]:  # type: ignore[union-attr]
            tokens_BTW = block(tokens_BTW, any_BT)
        tokens.append(tokens_BTW)
        masks.append(mask_BT)

    def _drop_modalities(self, batch: Batch) -> Batch:
        """Whole modalities at random, at the targets of the treatments too; the summary always stays."""
        dropped = dict(batch)
        known_BRGM = batch["treatment_state_known"]
        kept_BM = torch.rand(len(known_BRGM), known_BRGM.shape[-1], device=known_BRGM.device) >= self.modality_dropout
        for m, name in enumerate(self.scales):
            dropped[f"{name}_panel"] = batch[f"{name}_panel"] * kept_BM[:, m]
        dropped["treatment_state_known"] = known_BRGM * kept_BM[:, None, None]
        return dropped


def _expand_rows(values_B: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    """Repeat each row's value for its entries, in operations that export: a cumulative count of row starts."""
    starts = torch.zeros(indices.shape[0] + 1, dtype=torch.int64, device=indices.device)
    starts = starts.scatter_add(0, indptr[1:-1], torch.ones_like(indptr[1:-1]))
    row = starts.cumsum(0)[:-1]
    return values_B[row]
