"""The deep path: tokens -> encoders -> bottleneck -> treatment queries -> what the heads add to the linear scores.

Shapes: B patients, R regimens, K feature tokens, T tokens, W width, G target genes, M modalities, N tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ican_ml.inputs.schema import FIRST_KNOWN, InputSchema, Task
from ican_ml.model.blocks import Block, input_layer
from ican_ml.model.omics import OmicsEmbedding
from ican_ml.model.record import RecordEmbedding
from ican_ml.model.treatment import TreatmentQuery

Batch = dict[str, Tensor]
_PATIENT_FACTORS = 8


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Size and regularisation of the network.

    ``width`` must be divisible by ``heads``. ``members`` deep paths, each with its own start and dropout, are trained
    side by side and averaged (Lakshminarayanan et al. 2017, arXiv:1612.01474). ``identity_dropout`` is the probability
    that training takes a drug for unknown, ``code_dropout`` that a batch takes a code so. ``trees`` is how many boosted
    trees a task may have, 0 = none; ``trees_by`` names the covariate whose categories have trees of their own beside
    those of all, null = none. ``columns`` is the width of a network over what the trees, if any, split on, 0 = none: it
    learns the outcome by itself, and its logits are averaged with those of all other paths. ``landmarks`` is to how
    many training patients likeness is measured at most, 0 = none. ``resistance``: search for altered genes that make a
    tumour resist a class of drugs (deep path, binary tasks). ``query_layers`` 0: treatments ask nothing of the tokens,
    and the deep path knows the summary and the state of the targets alone. ``features_at_par``: in the linear path the
    ridge penalty is heavier on the features of a modality with more than so many, by their ratio.
    """

    width: int = 32
    heads: int = 4
    omics_layers: int = 1
    record_layers: int = 0
    fusion_layers: int = 1
    query_layers: int = 1
    bottleneck_tokens: int = 8
    dropout: float = 0.3
    token_dropout: float = 0.5
    modality_dropout: float = 0.05
    identity_dropout: float = 0.1
    code_dropout: float = 0.02
    trees: int = 0
    tree_depth: int = 5
    trees_by: str | None = None
    columns: int = 0
    landmarks: int = 0
    deep: bool = True
    resistance: bool = False
    members: int = 1
    features_at_par: float = 64.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ValueError(f"model.width: expected a multiple of model.heads ({self.heads}), got {self.width}")
        for name in ("omics_layers", "record_layers", "fusion_layers", "query_layers", "bottleneck_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name}: expected a number of at least 0, got {getattr(self, name)}")
        if self.trees < 0 or not 1 <= self.tree_depth <= 8:
            raise ValueError(
                "model.trees, model.tree_depth: expected at least 0 trees of a depth from 1 to 8, "
                f"got {self.trees} of {self.tree_depth}"
            )
        for name in ("landmarks", "columns"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name}: expected a number of at least 0, got {getattr(self, name)}")
        if self.features_at_par <= 0:
            raise ValueError(f"model.features_at_par: expected a positive number, got {self.features_at_par}")
        if self.members < 1:
            raise ValueError(f"model.members: expected a number of at least 1, got {self.members}")
        for name in ("dropout", "token_dropout", "modality_dropout", "identity_dropout", "code_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name}: expected a probability in [0, 1), got {getattr(self, name)}")


def head_width(task: Task) -> int:
    """Outputs of a task's deep head: logit, hazard logit by interval, or mean and log variance."""
    return {"binary": 1, "regression": 2, "survival": len(task.edges)}[task.kind]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaled:
    """Normalised values of a batch, by modality.

    Attributes
    ----------
    features
        [nnz] of every stored feature.
    tokens
        [B, K] of the features that are tokens.
    """

    features: Mapping[str, Tensor]
    tokens: Mapping[str, Tensor]


class DeepPath(nn.Module):
    """One member of the network's ensemble; its heads start at zero."""

    def __init__(self, config: ModelConfig, schema: InputSchema) -> None:
        super().__init__()
        width, heads, dropout = config.width, config.heads, config.dropout
        self.token_dropout = config.token_dropout
        self.genes = nn.Embedding(schema.n_genes, width, padding_idx=0)
        nn.init.normal_(self.genes.weight[1:], std=0.02)
        self.omics = nn.ModuleDict(
            {m.name: OmicsEmbedding(m, schema.gene_id, width, dropout) for m in schema.modalities}
        )
        self.record = RecordEmbedding(schema.vocabulary, len(schema.summary_names), width, dropout, config.code_dropout)
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
        if not config.query_layers:
            for part in (self.omics, self.record, self.encoders, self.context_norm, self.fused_norm, self.fusion):
                part.requires_grad_(False)
            self.bottleneck.requires_grad_(False)

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

    def forward(self, batch: Batch, scaled: Scaled, score_BN: Tensor, *states_BRGM: Tensor) -> list[dict[str, Tensor]]:
        """What each task's head adds, ``[B, R, outputs]``: asked of each of the states of the target genes.

        ``score_BN`` are the patients' linear scores. The patient is encoded once.
        """
        asked = self._context(batch, scaled) if len(self.query_blocks) else None
        return [self._answer(asked, batch, state_BRGM, score_BN) for state_BRGM in states_BRGM]

    def _context(self, batch: Batch, scaled: Scaled) -> tuple[Tensor, Tensor]:
        """Tokens of the fused patient and of all modalities, and which of them are real."""
        tokens: list[Tensor] = []
        masks: list[Tensor] = []
        for name, embed in self.omics.named_children():
            assert isinstance(embed, OmicsEmbedding)
            panel_B, tokens_BK = batch[f"{name}_panel"], batch[f"{name}_tokens"]
            bag_BW = embed.bag(batch[f"{name}_indptr"], batch[f"{name}_indices"], scaled.features[name], panel_B)
            embedded_BTW, mask_BT = embed(self.genes, bag_BW, tokens_BK, scaled.tokens[name], panel_B)
            masks.append(self._thinned(mask_BT))
            tokens.append(self._encode(name, embedded_BTW, masks[-1]))
        embedded_BTW, mask_BT = self.record(
            batch["event_code"],
            batch["event_value"],
            batch["event_has_value"],
            batch["event_gap"],
            batch["event_age"],
            batch["summary"],
        )
        masks.append(self._thinned(mask_BT))
        tokens.append(self._encode("record", embedded_BTW, masks[-1]))
        context_BTW, mask_BT = self.context_norm(torch.cat(tokens, dim=1)), torch.cat(masks, dim=1)
        fused_BZW = self.bottleneck.expand(context_BTW.shape[0], -1, -1)
        for block in self.fusion:
            fused_BZW = block(fused_BZW, mask_BT, context_BTW)
        context_BTW = torch.cat([self.fused_norm(fused_BZW), context_BTW], dim=1)
        return context_BTW, functional.pad(mask_BT, (self.bottleneck.shape[0], 0), value=True)

    def _answer(
        self, asked: tuple[Tensor, Tensor] | None, batch: Batch, state_BRGM: Tensor, score_BN: Tensor
    ) -> dict[str, Tensor]:
        """The heads' outputs for every regimen; ``asked`` are the context and its mask, none without query blocks."""
        query_BRW, target_BRW = self.treatment(
            self.genes,
            batch["treatment_drug"],
            batch["treatment_class"],
            batch["treatment_gene"],
            state_BRGM,
            batch["treatment_state_known"],
        )
        if asked is not None:
            context_BTW, mask_BT = asked
            for block in self.query_blocks:
                query_BRW = block(query_BRW, mask_BT, context_BTW)
        patient_B1W = (self.patient(batch["summary"]) + self.score(score_BN))[:, None]
        joint_BRW = torch.cat([self.query_norm(query_BRW), target_BRW, patient_B1W.expand_as(target_BRW)], dim=-1)
        return {name: head(joint_BRW) for name, head in self.heads.items()}

    def input_tables(self) -> Iterator[nn.Parameter]:
        """Weights on single features, codes and summary columns: many, seldom seen, and so decayed more strongly."""
        names = [*(f"omics.{name}.bag.weight" for name in self.omics), "record.summary.1.weight", "patient.1.weight"]
        names += ["genes.weight", "record.code.weight", "record.value.weight"]
        yield from map(self.get_parameter, names)

    def _thinned(self, mask_BT: Tensor) -> Tensor:
        """In training, feature tokens and events fall out at random; a modality's first token sums up all and stays."""
        if not (self.training and self.token_dropout > 0):
            return mask_BT
        kept_BT = torch.rand(mask_BT.shape, device=mask_BT.device) >= self.token_dropout
        kept_BT[:, 0] = True
        return mask_BT & kept_BT

    def _encode(self, name: str, tokens_BTW: Tensor, mask_BT: Tensor) -> Tensor:
        """Run a modality's encoder; a patient without it attends to its first token, which the fusion then masks."""
        any_BT = torch.cat([torch.ones_like(mask_BT[:, :1]), mask_BT[:, 1:]], dim=1)
        for block in self.encoders.get_submodule(name).children():
            tokens_BTW = block(tokens_BTW, any_BT)
        return tokens_BTW
