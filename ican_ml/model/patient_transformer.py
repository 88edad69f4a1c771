"""PatientTransformer: omics and record encoded once, then asked about every candidate treatment.

    omics modalities -> bag + tokens -> modality encoder -+
    record           -> summary + events -> encoder ------+-> bottleneck tokens -> fused patient
    regimens         -> queries ---- cross-attention to bottleneck and tokens ----> heads
    wide path        : summary, bags, drugs, target state -- linear --------------> added to every head
    trees, if any    : the same, value by value -- boosted ------------------------> added to every head
    columns, if any  : the same values -- network of its own ----------------------> averaged with the sum
    kernel, if any   : omics against those of training patients, by drug ----------> added to every head
    earlier, if any  : what a pretrained network answers -- linear -----------------> added to every head
    resistance, if any: altered genes by drug class, times what the targets promise -> off the binary heads

The bottleneck follows Nagrani et al. 2021 (arXiv:2107.00135). The trees are grown first, then the linear ("wide") path
is fitted to what they leave, by penalised maximum likelihood, and the deep heads start at zero: the deep path has to
earn what it adds (Cheng et al. 2016, arXiv:1606.07792). The columns path learns the outcome by itself, and is averaged
with all others. Inputs: the arrays of :mod:`ican_ml.inputs.encode`.

Shapes: B patients, R regimens, T tokens, W width, N tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ican_ml.inputs.answer import members_of
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.columns import SHARE, ColumnsPath
from ican_ml.model.deep import Batch, DeepPath, ModelConfig, Scaled, head_width
from ican_ml.model.embedding import PatientEmbedding
from ican_ml.model.kernel import KernelPath
from ican_ml.model.omics import FeatureScale, row_of_entry
from ican_ml.model.resistance import ResistancePath
from ican_ml.model.treatment import TargetState
from ican_ml.model.trees import TreePath
from ican_ml.model.wide import WidePath

__all__ = ["Batch", "ModelConfig", "PatientTransformer"]

_OWN_SCORES = ("wide_patient", "wide_treatment", "trees", "kernel")


@dataclass(frozen=True, kw_only=True, slots=True)
class Paths:
    """What the paths say.

    Attributes
    ----------
    score
        [B, R, N] of the paths before the deep one, together.
    spread
        [B, R, E, N]: how each member's trees differ from their mean.
    deep
        What each member's deep path adds, by task.
    columns
        What each member's columns path says, by task; none in training.
    gain
        [B, R, N]: what altered targets add in the deep path; see :mod:`ican_ml.model.resistance`.
    """

    score: Tensor
    spread: Tensor
    deep: list[dict[str, Tensor]]
    columns: list[dict[str, Tensor]]
    gain: Tensor | None


class PatientTransformer(nn.Module):
    """See the module docstring; ``forward`` maps the input arrays to one output a task.

    ``earlier``: a network pretrained under the same schema but for the tasks; it stays as it is.
    """

    def __init__(self, config: ModelConfig, schema: InputSchema, earlier: PatientTransformer | None = None) -> None:
        super().__init__()
        self.tasks = schema.tasks
        self.modality_dropout = config.modality_dropout
        self.scales = nn.ModuleDict({m.name: FeatureScale(m) for m in schema.modalities})
        self.explicit = {m.name: m.explicit for m in schema.modalities}
        self.target_state = TargetState([torch.tensor(schema.feature_of_gene[m.name]) for m in schema.modalities])
        self.earlier = None if earlier is None else earlier.requires_grad_(False)
        self.wide = WidePath(schema, 0 if earlier is None else len(earlier.tasks), config.features_at_par)
        shape = (config.trees, config.tree_depth, config.members)
        self.trees = TreePath(schema, *shape, config.trees_by) if config.trees else None
        self.columns = None
        if self.trees is not None and config.columns:
            categories = 1 + len(self.trees.categories)
            with torch.random.fork_rng(devices=[]):
                self.columns = ColumnsPath(
                    schema.tasks, self.trees.n_values, categories, config.columns, config.members
                )
        comparable = schema.modalities or schema.summary_names
        self.kernel = KernelPath(schema, config.landmarks) if config.landmarks and comparable else None
        self.bias = nn.ParameterDict({t.name: nn.Parameter(torch.zeros(head_width(t))) for t in schema.tasks})
        asked = config.resistance and config.deep and any(task.kind == "binary" for task in schema.tasks)
        self.resistance = ResistancePath(schema) if asked else None
        with torch.random.fork_rng(devices=[]):  # what training draws does not depend on it
            self.embedding = PatientEmbedding(schema)
        self.n_members = config.members if config.trees or config.deep else 1
        self.members = nn.ModuleList(DeepPath(config, schema) for _ in range(config.members if config.deep else 0))
        for task in schema.tasks:
            if task.kind == "binary":
                self.register_buffer(f"calibration_{task.name}", torch.tensor([1.0, 0.0]))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Binary ``[B, R]`` logits, survival ``[B, R, bins]`` hazard logits, regression ``[B, R, 2]``.

        The mean of the members, calibrated. With several, ``<task>_members`` holds each one's own, on a third axis.
        """
        paths = self.paths(batch)
        score_BRN = paths.score
        if self.resistance is not None and paths.gain is not None:
            score_BRN = score_BRN + self.resistance(batch, paths.gain)
        outputs = self.calibrated(self.outputs(score_BRN, self.mean(paths.deep), self.mean(paths.columns)))
        if self.n_members > 1:
            each = [
                self.calibrated(
                    self.outputs(
                        score_BRN + paths.spread[:, :, e],
                        paths.deep[e] if paths.deep else {},
                        paths.columns[e] if paths.columns else {},
                    )
                )
                for e in range(self.n_members)
            ]
            outputs |= {members_of(task): torch.stack([m[task.name] for m in each], dim=2) for task in self.tasks}
        return outputs

    def calibrated(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Slope x logit + intercept of the binary tasks: the identity until :meth:`set_calibration`."""
        found = dict(outputs)
        for task in self.tasks:
            if task.kind == "binary":
                line = self.get_buffer(f"calibration_{task.name}")
                found[task.name] = line[0] * outputs[task.name] + line[1]
        return found

    def set_calibration(self, task: str, slope: float, intercept: float) -> None:
        """Calibrate a binary task: see :mod:`ican_ml.training.calibration`."""
        self.get_buffer(f"calibration_{task}").copy_(torch.tensor([slope, intercept]))

    def embed(self, batch: Batch) -> Tensor:
        """``[B, E]``: where each patient lies among those of training; see :mod:`ican_ml.model.embedding`."""
        found: Tensor = self.embedding(batch, self._scale_features(batch))
        return found

    def member_outputs(self, batch: Batch) -> list[dict[str, Tensor]]:
        """The outputs of each member alone, not calibrated: what it is trained on.

        The batch may bring the linear scores (see :func:`ican_ml.training.wide.cross_fit`).
        """
        paths = self.paths(batch)
        return [self.outputs(paths.score, each) for each in paths.deep]

    def paths(self, batch: Batch) -> Paths:
        """What each path says, but for resistance. The gain is asked for in evaluation only."""
        batch = self.with_earlier(batch)
        features, state_BRGM = self.normalise(batch)
        if "wide_patient" in batch:
            patient_BN, treatment_BRN = batch["wide_patient"], batch["wide_treatment"][:, : state_BRGM.shape[1]]
        else:
            patient_BN, treatment_BRN = self.wide(batch, features, state_BRGM)
        spread_BREN = treatment_BRN.new_zeros(*treatment_BRN.shape[:2], self.n_members, len(self.tasks))
        columns_path = None if self.training else self.columns
        values_BRF = None
        if columns_path is not None or (self.trees is not None and "trees" not in batch):
            values_BRF = self.tree_values(batch, state_BRGM)
        if "trees" in batch:
            treatment_BRN = treatment_BRN + batch["trees"][:, : state_BRGM.shape[1]]
        elif self.trees is not None:
            trees_BREN = self.trees(values_BRF)
            treatment_BRN = treatment_BRN + trees_BREN.mean(2)
            spread_BREN = trees_BREN - trees_BREN.mean(2, keepdim=True)
        if "kernel" in batch:
            treatment_BRN = treatment_BRN + batch["kernel"][:, : state_BRGM.shape[1]]
        elif self.kernel is not None:
            treatment_BRN = treatment_BRN + self.kernel(batch, features)
        columns = []
        if columns_path is not None and values_BRF is not None:
            columns = columns_path(values_BRF, self.category(values_BRF))
        scaled = Scaled(features=features, tokens=self._scale_tokens(batch))
        states = [state_BRGM]
        if self.resistance is not None and not self.training:
            altered_BRGM = batch["treatment_state"]
            states.append(self._state({**batch, "treatment_state": self.resistance.unaltered(altered_BRGM)}))
        asked = []
        known_BN = patient_BN.detach() if self.training else patient_BN
        for member in self.members:
            seen, kept_BM = self._drop_modalities(batch)
            asked.append(member(seen, scaled, known_BN, *(state * kept_BM[:, None, None] for state in states)))
        deep = [each[0] for each in asked]
        gain_BRN = None
        if states[1:]:
            answers = [
                self.outputs(self.wide.targets(batch, state), self.mean([each[k] for each in asked]))
                for k, state in enumerate(states)
            ]
            gain_BRN = self._gain(*answers)
        score_BRN = patient_BN[:, None] + treatment_BRN
        return Paths(score=score_BRN, spread=spread_BREN, deep=deep, columns=columns, gain=gain_BRN)

    def mean(self, members: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The mean of what the members' deep or columns paths say, by task."""
        return {task.name: torch.stack([each[task.name] for each in members]).mean(0) for task in self.tasks if members}

    def _gain(self, answer: dict[str, Tensor], unaltered: dict[str, Tensor]) -> Tensor:
        """``[B, R, N]``: what altered targets add to the logits of binary tasks, 0 for others."""
        each = [
            answer[task.name] - unaltered[task.name]
            if task.kind == "binary"
            else torch.zeros_like(answer[task.name][..., 0])
            for task in self.tasks
        ]
        return torch.stack(each, dim=-1)

    def with_earlier(self, batch: Batch) -> Batch:
        """The batch with what the pretrained network answers, ``[B, R, its tasks]``: a number each, higher for more."""
        if self.earlier is None or "earlier" in batch:
            return batch
        outputs = self.earlier({name: value for name, value in batch.items() if name not in _OWN_SCORES})
        numbers = [
            outputs[task.name]
            if task.kind == "binary"
            else outputs[task.name].mean(-1)
            if task.kind == "survival"
            else (outputs[task.name][..., 0] - task.centre) / task.scale
            for task in self.earlier.tasks
        ]
        return {**batch, "earlier": torch.stack(numbers, dim=-1)}

    def train(self, mode: bool = True) -> PatientTransformer:
        """As of any module, but a pretrained network always answers as in evaluation."""
        super().train(mode)
        if self.earlier is not None:
            self.earlier.eval()
        return self

    def start_from_earlier(self) -> None:
        """The deep path's weights from the pretrained one's, as far as they are alike; the heads start anew."""
        if self.earlier is None or not self.earlier.members:
            return
        for e, member in enumerate(self.members):
            known = self.earlier.members[e % len(self.earlier.members)].state_dict()
            own = member.state_dict()
            alike = {name for name, value in known.items() if name in own and own[name].shape == value.shape}
            member.load_state_dict(own | {name: known[name] for name in alike if not name.startswith("heads.")})

    def input_tables(self) -> Iterator[nn.Parameter]:
        """Weights on single features, codes and summary columns: many, seldom seen, and so decayed more strongly."""
        for member in self.members:
            assert isinstance(member, DeepPath)
            yield from member.input_tables()

    def normalise(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Normalised values of every stored feature by modality, and of the target genes ``[B, R, G, M]``."""
        return self._scale_features(batch), self._state(batch)

    def tree_values(self, batch: Batch, state_BRGM: Tensor) -> Tensor:
        """``[B, R, F]``: see :meth:`TreePath.values`."""
        assert self.trees is not None
        return self.trees.values(batch, self._scale_features(batch, centred=True), state_BRGM)

    def category(self, values_BRF: Tensor) -> Tensor:
        """int64 ``[B, R]``: whose trees and columns are asked; see :meth:`TreePath.group`."""
        assert self.trees is not None
        return self.trees.group(values_BRF.flatten(0, 1)).reshape(values_BRF.shape[:2])

    def outputs(
        self, score_BRN: Tensor, deep: dict[str, Tensor], columns: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Bias + score + what the deep heads add, by task; where there are columns, averaged with theirs."""
        outputs = {}
        for n, task in enumerate(self.tasks):
            score_BR1 = score_BRN[..., n : n + 1]
            if task.kind == "regression":
                score_BR1 = functional.pad(score_BR1, (0, 1))
            out = self.bias[task.name] + deep.get(task.name, 0.0) + score_BR1
            if columns:
                out = (1 - SHARE) * out + SHARE * columns[task.name]
            outputs[task.name] = out
        return self.finished(outputs)

    def finished(self, said: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the heads say ``[B, R, outputs]``, as the outputs of :meth:`forward`: regression in its own units."""
        outputs = {}
        for task in self.tasks:
            out = said[task.name]
            if task.kind == "regression":
                out = torch.stack(
                    [task.centre + task.scale * out[..., 0], out[..., 1] + 2 * math.log(task.scale)], dim=-1
                )
            outputs[task.name] = out.squeeze(-1) if task.kind == "binary" else out
        return outputs

    def _state(self, batch: Batch) -> Tensor:
        totals = [batch[f"{name}_total"] for name in self.scales]
        state_BRGM: Tensor = self.target_state(
            self.scales, totals, batch["treatment_gene"], batch["treatment_state"], batch["treatment_state_known"]
        )
        return state_BRGM

    def _scale_features(self, batch: Batch, *, centred: bool = False) -> dict[str, Tensor]:
        """Every stored feature; where ``centred`` is not asked for, sparse modalities from their normalised zero."""
        scaled = {}
        for name, scale in self.scales.items():
            indices, total = batch[f"{name}_indices"], batch[f"{name}_total"]
            if scale.is_count:
                total = total[row_of_entry(batch[f"{name}_indptr"], indices)]
            scaled[name] = scale(batch[f"{name}_values"], indices, total, centred=centred or self.explicit[name])
        return scaled

    def _scale_tokens(self, batch: Batch) -> dict[str, Tensor]:
        return {
            name: scale(
                batch[f"{name}_token_values"],
                (batch[f"{name}_tokens"] - 1).clamp(min=0),
                batch[f"{name}_total"][:, None],
            )
            for name, scale in self.scales.items()
        }

    def _drop_modalities(self, batch: Batch) -> tuple[Batch, Tensor]:
        """In training, whole modalities at random; and which are kept ``[B, M]``. The summary always stays."""
        known_BRGM = batch["treatment_state_known"]
        n_patients, n_modalities = known_BRGM.shape[0], known_BRGM.shape[-1]  # len() would fix it in an exported graph
        if not (self.training and self.modality_dropout > 0):
            return batch, known_BRGM.new_ones(n_patients, n_modalities)
        kept_BM = torch.rand(n_patients, n_modalities, device=known_BRGM.device) >= self.modality_dropout
        dropped = dict(batch)
        for m, name in enumerate(self.scales):
            dropped[f"{name}_panel"] = batch[f"{name}_panel"] * kept_BM[:, m]
        dropped["treatment_state_known"] = known_BRGM * kept_BM[:, None, None]
        return dropped, kept_BM
