"""PatientTransformer: omics and record encoded once, then asked about every candidate treatment.

    omics modalities -> bag + tokens -> modality encoder -+
    record           -> summary + events -> encoder ------+-> bottleneck tokens -> fused patient
    regimens         -> queries ---- cross-attention to bottleneck and tokens ----> heads
    wide path        : summary, bags, drugs, target state -- linear --------------> added to every head

The bottleneck follows Nagrani et al. 2021 (arXiv:2107.00135). The linear ("wide") path is fitted first, by penalised
maximum likelihood, and the deep heads start at zero: the deep path has to earn what it adds (Cheng et al. 2016,
arXiv:1606.07792). Inputs: the arrays of :mod:`ican_ml.inputs.encode`.

Shapes: B patients, R regimens, T tokens, W width, N tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ican_ml.inputs.schema import FIRST_KNOWN, InputSchema, Task
from ican_ml.model.blocks import Block, input_layer
from ican_ml.model.omics import FeatureBag, FeatureScale, OmicsEmbedding
from ican_ml.model.record import RecordEmbedding
from ican_ml.model.treatment import TargetState, TreatmentQuery

Batch = dict[str, Tensor]
_PATIENT_FACTORS = 8
_FEATURES_AT_PAR = 64


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Size and regularisation of the network. ``width`` must be divisible by ``heads``."""

    width: int = 32
    heads: int = 4
    omics_layers: int = 1
    record_layers: int = 0
    fusion_layers: int = 1
    query_layers: int = 1
    bottleneck_tokens: int = 8
    dropout: float = 0.3
    modality_dropout: float = 0.05
    identity_dropout: float = 0.1
    deep: bool = True

    def __post_init__(self) -> None:
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ValueError(f"model.width: expected a multiple of model.heads ({self.heads}), got {self.width}")
        for name in ("omics_layers", "record_layers", "fusion_layers", "query_layers", "bottleneck_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name}: expected a number of at least 0, got {getattr(self, name)}")
        for name in ("dropout", "modality_dropout", "identity_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name}: expected a probability in [0, 1), got {getattr(self, name)}")


def head_width(task: Task) -> int:
    """Outputs of a task's deep head: logit, hazard logit by interval, or mean and log variance."""
    return {"binary": 1, "regression": 2, "survival": len(task.edges)}[task.kind]


class WidePath(nn.Module):
    """The linear path: one score per task, patient and treatment, zero until it is fitted.

    One ridge penalty serves all blocks: that of a modality with many features is made heavier by scaling its score, so
    that two thousand genes do not outweigh a few dozen clinical columns.
    """

    def __init__(self, schema: InputSchema) -> None:
        super().__init__()
        n_tasks = len(schema.tasks)
        self.summary = input_layer(len(schema.summary_names), n_tasks, bias=False)
        self.bags = nn.ModuleDict({m.name: FeatureBag(m, n_tasks, zero=True) for m in schema.modalities})
        self.shares = [min(1.0, (_FEATURES_AT_PAR / len(m.features)) ** 0.5) for m in schema.modalities]
        self.present = nn.Parameter(torch.zeros(len(schema.modalities), n_tasks))
        self.drug = nn.Embedding(len(schema.drugs) + FIRST_KNOWN, n_tasks, padding_idx=0)
        self.drug_class = nn.Embedding(len(schema.classes) + FIRST_KNOWN, n_tasks, padding_idx=0)
        self.state = nn.Parameter(torch.zeros(2 * len(schema.modalities), n_tasks))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, batch: Batch, scaled: dict[str, Tensor], state_BRGM: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, tasks]`` of the patient and ``[B, R, tasks]`` of the treatments; the score is their sum.

        ``scaled`` are the modalities' normalised values, ``state_BRGM`` the targets'.
        """
        patient_BN = self.summary(batch["summary"])
        for m, (name, bag) in enumerate(self.bags.items()):
            panel_B = batch[f"{name}_panel"]
            bag_BN = bag(batch[f"{name}_indptr"], batch[f"{name}_indices"], scaled[name], panel_B)
            patient_BN = patient_BN + bag_BN * self.shares[m] + (panel_B > 0)[:, None] * self.present[m]
        known_BRGM = batch["treatment_state_known"]
        real_BRG1 = (batch["treatment_gene"] > 0).to(state_BRGM.dtype)[..., None]
        state_BRN = (torch.cat([state_BRGM, known_BRGM], -1) @ self.state * real_BRG1).sum(2)
        drug_BRN = self.drug(batch["treatment_drug"]).sum(2) + self.drug_class(batch["treatment_class"]).sum(2)
        return patient_BN, drug_BRN + state_BRN / real_BRG1.sum(2).clamp(min=1)


class PatientTransformer(nn.Module):
    """See the module docstring; ``forward`` maps the input arrays to one output a task."""

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
        nn.init.normal_(self.genes.weight[1:], std=0.02)
        self.omics = nn.ModuleDict(
            {m.name: OmicsEmbedding(m, schema.gene_id, width, dropout) for m in schema.modalities}
        )
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
            len(schema.drugs) + FIRST_KNOWN,
            len(schema.classes) + FIRST_KNOWN,
            len(schema.modalities),
            width,
            dropout,
            config.identity_dropout,
        )
        self.patient = nn.Sequential(
            nn.Dropout(dropout),
            input_layer(len(schema.summary_names), _PATIENT_FACTORS),
            nn.Linear(_PATIENT_FACTORS, width),
        )
        self.score = nn.Linear(len(schema.tasks), width)
        self.query_norm = nn.LayerNorm(width)
        self.query_blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(config.query_layers))
        self.heads = nn.ModuleDict({task.name: self._head(width, head_width(task), dropout) for task in schema.tasks})

    @staticmethod
    def _head(width: int, outputs: int, dropout: float) -> nn.Sequential:
        last = nn.Linear(width, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(
            nn.Linear(3 * width, 2 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
            nn.GELU(),
            last,
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Binary ``[B, R]`` logits, survival ``[B, R, bins]`` hazard logits, regression ``[B, R, 2]``.

        In training the batch may bring the linear scores (see :func:`ican_ml.training.wide.cross_fit`).
        """
        if self.training and self.modality_dropout > 0:
            batch = self._drop_modalities(batch)
        scaled, state_BRGM = self.normalise(batch)
        if "wide_patient" in batch:
            patient_BN, treatment_BRN = batch["wide_patient"], batch["wide_treatment"][:, : state_BRGM.shape[1]]
        else:
            patient_BN, treatment_BRN = self.wide(batch, scaled, state_BRGM)
        deep = self._deep(batch, scaled, state_BRGM, patient_BN.detach()) if self.is_deep else {}
        return self.outputs(patient_BN[:, None] + treatment_BRN, deep)

    def input_tables(self) -> Iterator[nn.Parameter]:
        """Weights on single features, codes and summary columns: many, seldom seen, and so decayed more strongly."""
        if self.is_deep:
            names = [
                *(f"omics.{name}.bag.weight" for name in self.omics),
                "record.summary.1.weight",
                "patient.1.weight",
            ]
            yield from map(self.get_parameter, names)

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
            scaled[name] = scale(batch[f"{name}_values"], batch[f"{name}_indices"], total, centred=self.explicit[name])
        return scaled

    def _deep(self, batch: Batch, scaled: dict[str, Tensor], state_BRGM: Tensor, score_BN: Tensor) -> dict[str, Tensor]:
        tokens: list[Tensor] = []
        masks: list[Tensor] = []
        for name, embed in self.omics.named_children():
            assert isinstance(embed, OmicsEmbedding)
            panel_B, tokens_BK = batch[f"{name}_panel"], batch[f"{name}_tokens"]
            bag_BW = embed.bag(batch[f"{name}_indptr"], batch[f"{name}_indices"], scaled[name], panel_B)
            scaled_BK = self.scales[name](
                batch[f"{name}_token_values"], (tokens_BK - 1).clamp(min=0), batch[f"{name}_total"][:, None]
            )
            embedded_BTW, mask_BT = embed(self.genes, bag_BW, tokens_BK, scaled_BK, panel_B)
            tokens.append(self._encode(name, embedded_BTW, mask_BT))
            masks.append(mask_BT)
        embedded_BTW, mask_BT = self.record(
            batch["event_code"],
            batch["event_value"],
            batch["event_has_value"],
            batch["event_gap"],
            batch["event_age"],
            batch["summary"],
        )
        tokens.append(self._encode("record", embedded_BTW, mask_BT))
        masks.append(mask_BT)
        context_BTW, mask_BT = self.context_norm(torch.cat(tokens, dim=1)), torch.cat(masks, dim=1)
        fused_BZW = self.bottleneck.expand(context_BTW.shape[0], -1, -1)
        for block in self.fusion:
            fused_BZW = block(fused_BZW, mask_BT, context_BTW)
        context_BTW = torch.cat([self.fused_norm(fused_BZW), context_BTW], dim=1)
        mask_BT = functional.pad(mask_BT, (self.bottleneck.shape[0], 0), value=True)
        query_BRW, target_BRW = self.treatment(
            self.genes,
            batch["treatment_drug"],
            batch["treatment_class"],
            batch["treatment_gene"],
            state_BRGM,
            batch["treatment_state_known"],
        )
        for block in self.query_blocks:
            query_BRW = block(query_BRW, mask_BT, context_BTW)
        patient_B1W = (self.patient(batch["summary"]) + self.score(score_BN))[:, None]
        joint_BRW = torch.cat([self.query_norm(query_BRW), target_BRW, patient_B1W.expand_as(target_BRW)], dim=-1)
        return {name: head(joint_BRW) for name, head in self.heads.items()}

    def _encode(self, name: str, tokens_BTW: Tensor, mask_BT: Tensor) -> Tensor:
        """Run a modality's encoder; a patient without it attends to its first token, which the fusion then masks."""
        any_BT = torch.cat([torch.ones_like(mask_BT[:, :1]), mask_BT[:, 1:]], dim=1)
        for block in self.encoders.get_submodule(name).children():
            tokens_BTW = block(tokens_BTW, any_BT)
        return tokens_BTW

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
