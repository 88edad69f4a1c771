"""Attribution: which genes, events and summary columns carry a prediction? Integrated gradients.

Sundararajan, Taly and Yan 2017, arXiv:1703.01365. The path leads from a patient without alterations, whose events are
all of unknown codes and whose summary is the average, to the patient: values of features, of target genes and of the
summary grow from zero, tokens from what all tokens of their kind share. Together the attributions are what the answer
differs by between both ends (completeness). A trained network may turn sharply somewhere on the path: the piece of it
on which gradient and answer disagree most is halved until completeness holds to 1%. What boosted trees add has no
gradient: it is held as it is for the patient, and takes no part.

Shapes: N patients, B of a batch, K tokens, T events, G genes, S summary columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ican_ml.inputs.schema import InputSchema, ModalitySchema
from ican_ml.model.omics import OmicsEmbedding
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.model.record import RecordEmbedding

Batch = dict[str, Tensor]
Float64 = npt.NDArray[np.float64]
COMPLETE = 0.01
_NODES, _PIECES, _MOST = 4, 4, 64
_LEAST = 1e-3  # of an answer's difference: relative to less, nothing is judged
_AVERAGE = 1e-6  # of the summary at the path's start: exactly 0 says unknown
_POWER = 3  # nodes lie closer near the start of the path, where layer norms turn


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribution:
    """What each part adds to the score of one regimen, positive = to the benefit.

    Attributes
    ----------
    gene
        [N, G]: by genes of the schema (``schema.genes``), all modalities and the target's state together.
    record, summary
        [N]: all events; all summary columns.
    difference
        [N]: score of the patient less that of the path's start.
    error
        [N]: by how much the parts miss it, as a share of it.
    """

    gene: Float64
    record: Float64
    summary: Float64
    difference: Float64
    error: Float64


def attribute(
    network: PatientTransformer, schema: InputSchema, batches: Sequence[Batch], *, task: int = 0
) -> Attribution:
    """Of patients asked about one regimen each (the first slot of ``batches``).

    The score: logit of a binary task, minus the mean hazard logit of survival, minus the value of a regression.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval().requires_grad_(False)
    try:
        parts = [_batch(network, schema, batch, task) for batch in tqdm(batches, disable=None, desc="attribution")]
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
    return Attribution(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in Attribution.__dataclass_fields__}
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """A piece of the path: what each input adds on it, and by how much that misses the score's difference [B]."""

    start: float
    end: float
    sums: dict[str, Tensor]
    error: Tensor


def _batch(network: PatientTransformer, schema: InputSchema, batch: Batch, task: int) -> Attribution:
    batch = _with_trees(network, batch)
    scores: dict[float, Tensor] = {}

    def score(at: float) -> Tensor:
        if at not in scores:
            scores[at] = _score(network, batch, _at(schema, batch, at**_POWER, grad=False), task).detach().double()
        return scores[at]

    def piece(start: float, end: float) -> _Piece:
        sums = _integrated(network, schema, batch, task, start, end)
        total = sum(_by_patient(name, values, batch) for name, values in sums.items())
        return _Piece(start=start, end=end, sums=sums, error=total - (score(end) - score(start)))

    pieces = [piece(i / _PIECES, (i + 1) / _PIECES) for i in range(_PIECES)]
    difference = score(1.0) - score(0.0)
    scale = difference.abs().clamp(min=_LEAST)
    while True:
        error = torch.stack([each.error for each in pieces]).sum(0).abs() / scale
        if bool((error <= COMPLETE).all()) or len(pieces) >= _MOST:
            break
        missed = error > COMPLETE
        worst = max(pieces, key=lambda each: float((each.error.abs() / scale)[missed].max()))
        pieces.remove(worst)
        middle = (worst.start + worst.end) / 2
        pieces += [piece(worst.start, middle), piece(middle, worst.end)]
    sums = {name: torch.stack([each.sums[name] for each in pieces]).sum(0) for name in pieces[0].sums}
    gene = difference.new_zeros(len(difference) * schema.n_genes)
    for name, values in sums.items():
        for row, ids, each in _by_gene(name, values, batch, schema):
            gene.index_add_(0, row * schema.n_genes + ids, each)
    return Attribution(
        gene=gene.reshape(len(difference), schema.n_genes).cpu().numpy(),
        record=sums["events"].sum(1).cpu().numpy(),
        summary=sums["summary"].sum(1).cpu().numpy(),
        difference=difference.cpu().numpy(),
        error=error.cpu().numpy(),
    )


def _integrated(
    network: PatientTransformer, schema: InputSchema, batch: Batch, task: int, start: float, end: float
) -> dict[str, Tensor]:
    """The integral of the gradient along a piece of the path, times the path's length: one tensor an input.

    Gauss-Legendre. ``start`` and ``end`` are roots of places on the path.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    t = start + (nodes + 1) / 2 * (end - start)
    sums: dict[str, Tensor] = {}
    for at, weight in zip(t**_POWER, weights / 2 * (end - start) * _POWER * t ** (_POWER - 1), strict=True):
        inputs = _at(schema, batch, float(at), grad=True)
        found = torch.autograd.grad(
            _score(network, batch, inputs, task).sum(), list(inputs.values()), allow_unused=True
        )
        for (name, _), gradient in zip(inputs.items(), found, strict=True):
            if gradient is not None:
                sums[name] = sums.get(name, 0.0) + weight * gradient.double()
    full, base = (_at(schema, batch, at, grad=False) for at in (1.0, 0.0))
    return {
        name: sums.get(name, torch.zeros_like(value, dtype=torch.float64)) * (value - base[name]).double()
        for name, value in full.items()
    }


def _at(schema: InputSchema, batch: Batch, at: float, *, grad: bool) -> dict[str, Tensor]:
    """The inputs at a point of the path: raw values that grow from neutral, and gates of tokens that open."""
    inputs = {}
    for modality in schema.modalities:
        name = modality.name
        inputs[f"{name}_values"] = _grown(batch[f"{name}_values"], _neutral(modality, batch[f"{name}_indices"]), at)
        inputs[f"gate:{name}"] = torch.full_like(batch[f"{name}_token_values"], at)
    inputs["treatment_state"] = _grown(batch["treatment_state"], _neutral_state(schema, batch), at)
    inputs["summary"] = batch["summary"] * max(at, _AVERAGE)
    inputs["events"] = torch.full_like(batch["event_value"], at)
    return {name: value.detach().requires_grad_(grad) for name, value in inputs.items()}


def _grown(value: Tensor, neutral: Tensor, at: float) -> Tensor:
    return neutral + (value - neutral) * at


def _neutral(modality: ModalitySchema, feature: Tensor) -> Tensor:
    """Zero, or the mean where zero is a value like any other."""
    mean = torch.tensor(modality.mean, device=feature.device)[feature]
    return mean if modality.explicit and modality.kind != "count" else torch.zeros_like(mean)


def _neutral_state(schema: InputSchema, batch: Batch) -> Tensor:
    columns = []
    for modality in schema.modalities:
        gene_BRG = batch["treatment_gene"]
        feature = torch.tensor(schema.feature_of_gene[modality.name], device=gene_BRG.device)[gene_BRG]
        columns.append(_neutral(modality, feature.clamp(min=0)) * (feature >= 0))
    known = batch["treatment_state_known"]
    return torch.stack(columns, dim=-1) * known if columns else batch["treatment_state"]


def _score(network: PatientTransformer, batch: Batch, inputs: Mapping[str, Tensor], task: int) -> Tensor:
    """[B]: higher is better."""
    asked = network.tasks[task]
    with _gated(network, inputs):
        output: Tensor = network({**batch, **{name: v for name, v in inputs.items() if name in batch}})[asked.name][
            :, 0
        ]
    if asked.kind == "survival":
        return -output.mean(-1)
    return output if asked.kind == "binary" else -output[..., 0]


@contextmanager
def _gated(network: PatientTransformer, inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Tokens between what all of their kind share, where the gate is 0, and themselves, where it is 1."""

    def omics(gate_BK: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
        def hook(module: OmicsEmbedding, _: object, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            tokens_BTW, mask_BT = output
            gated = module.kind + (tokens_BTW[:, 1:] - module.kind) * gate_BK[..., None]
            return torch.cat([tokens_BTW[:, :1], gated], dim=1), mask_BT

        return hook

    def record(
        module: RecordEmbedding, arguments: tuple[Tensor, ...], output: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        code_BT, value_BT, has_value_BT = arguments[:3]
        tokens_BTW, mask_BT = output
        own = module.code(code_BT) + module.value(code_BT) * value_BT[..., None]
        own = own + module.time.weight[:, _HAS_VALUE] * has_value_BT[..., None] - module.code.weight[1]
        closed = (1 - inputs["events"]) * (code_BT > 0)
        return torch.cat([tokens_BTW[:, :1], tokens_BTW[:, 1:] - own * closed[..., None]], dim=1), mask_BT

    handles = []
    for path, module in network.named_modules():
        if isinstance(module, OmicsEmbedding):
            handles.append(module.register_forward_hook(omics(inputs[f"gate:{path.rpartition('.')[2]}"])))
        elif isinstance(module, RecordEmbedding):
            handles.append(module.register_forward_hook(record))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_HAS_VALUE = 3  # its place among the inputs of RecordEmbedding.time


def _with_trees(network: PatientTransformer, batch: Batch) -> Batch:
    if network.trees is None:
        return batch
    with torch.no_grad():
        batch = network.with_earlier(batch)
        state_BRGM = network.normalise(batch)[1]
        return {**batch, "trees": network.trees(network.tree_values(batch, state_BRGM)).mean(2)}


def _by_patient(name: str, values: Tensor, batch: Batch) -> Tensor:
    """[B]: the sum over each patient."""
    if name.endswith("_values"):
        found = values.new_zeros(len(batch["summary"]))
        return found.index_add(0, _row_of(name.removesuffix("_values"), batch), values)
    return values.flatten(1).sum(1)


def _rows(ids: Tensor) -> Tensor:
    """The row of every entry, as a flat tensor."""
    return torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids).flatten()


def _row_of(name: str, batch: Batch) -> Tensor:
    lengths = batch[f"{name}_indptr"].diff()
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def _by_gene(name: str, values: Tensor, batch: Batch, schema: InputSchema) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows, gene ids and values of what belongs to a gene."""
    genes = {
        m.name: torch.tensor([0, *(schema.gene_id[gene] for gene in m.genes)], device=values.device)
        for m in schema.modalities
    }
    if name.endswith("_values"):
        modality = name.removesuffix("_values")
        yield _row_of(modality, batch), genes[modality][batch[f"{modality}_indices"] + 1], values
    elif name.startswith("gate:"):
        modality = name.removeprefix("gate:")
        ids = genes[modality][batch[f"{modality}_tokens"]]
        yield _rows(ids), ids.flatten(), values.flatten()
    elif name == "treatment_state":
        ids = batch["treatment_gene"].flatten(1)
        yield _rows(ids), ids.flatten(), values.sum(-1).flatten()
