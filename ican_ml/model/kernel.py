"""Likeness to training patients: a Gaussian process over patients and drugs, its mean as a path of the network.

A patient is as far from each landmark (a training patient) as their omics are; near ones are alike in what they respond
to, and drugs alike in whom they help. Fitted in closed form by :mod:`ican_ml.training.kernel` before anything else, and
added to the linear scores. A regimen without a drug of training answers as the training drugs with its target genes do:
a virtual inhibitor is one more drug. Views of each modality: distances between its principal components (the
exponential kernel), the same between components of equal weight, and their product (the linear kernel).

Shapes: B patients, R regimens, D drugs, G target genes, S landmarks, C components, N tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ican_ml.inputs.schema import FIRST_KNOWN, InputSchema
from ican_ml.model.omics import FeatureBag

Batch = dict[str, Tensor]
VIEWS = ("distance", "whitened", "product")
COMPONENTS = 256
SUMMARY = "summary"
_LIMIT = 3.0
_ROUND = 0.01  # of the reach: below it all are equally near, so that the last bit of a distance does not matter


class KernelPath(nn.Module):
    """``landmarks`` training patients at most; nothing is added until it is fitted."""

    weight: Tensor
    answer: Tensor
    mean: Tensor
    of_gene: Tensor

    def __init__(self, schema: InputSchema, landmarks: int) -> None:
        super().__init__()
        self.landmarks = landmarks
        n_drugs = len(schema.drugs) + FIRST_KNOWN
        self.bags = nn.ModuleDict({m.name: FeatureBag(m, COMPONENTS, zero=True) for m in schema.modalities})
        self.bags.requires_grad_(False)
        widths = {m.name: COMPONENTS for m in schema.modalities}
        if schema.summary_names:
            widths[SUMMARY] = len(schema.summary_names)
        for name, width in widths.items():
            self.register_buffer(f"landmark_{name}", torch.zeros(landmarks, width))
            self.register_buffer(f"origin_{name}", torch.zeros(width))
            self.register_buffer(f"evenly_{name}", torch.ones(width))
            self.register_buffer(f"reach_{name}", torch.ones(len(VIEWS)))
        self.has_summary = SUMMARY in widths
        n_tasks = len(schema.tasks)
        self.register_buffer("weight", torch.zeros(n_tasks, len(widths), len(VIEWS)))
        self.register_buffer("answer", torch.zeros(n_tasks, landmarks, n_drugs))
        self.register_buffer("mean", torch.zeros(n_tasks, n_drugs))
        self.register_buffer("of_gene", _drugs_of_genes(schema), persistent=False)

    def project(self, batch: Batch, scaled: dict[str, Tensor]) -> dict[str, Tensor]:
        """``[B, C]`` by modality: principal components, zero where it is absent; the summary as it is."""
        components = {}
        for name, bag in self.bags.items():
            panel_B = batch[f"{name}_panel"]
            bag_BC = bag(batch[f"{name}_indptr"], batch[f"{name}_indices"], scaled[name], panel_B)
            components[name] = bag_BC - self.get_buffer(f"origin_{name}") * (panel_B > 0)[:, None]
        if self.has_summary:
            components[SUMMARY] = batch["summary"].clamp(-_LIMIT, _LIMIT)
        return components

    def views(self, name: str, component_BC: Tensor) -> list[Tensor]:
        """``[B, S]`` for each of ``VIEWS``: likeness to the landmarks by one modality."""
        landmark_SC = self.get_buffer(f"landmark_{name}")
        evenly_C = self.get_buffer(f"evenly_{name}")
        reach = self.get_buffer(f"reach_{name}")
        return [
            torch.exp(-distance(component_BC / reach[0], landmark_SC / reach[0])),
            torch.exp(-distance(component_BC * evenly_C / reach[1], landmark_SC * evenly_C / reach[1])),
            component_BC @ landmark_SC.T / reach[2],
        ]

    def forward(self, batch: Batch, scaled: dict[str, Tensor]) -> Tensor:
        """``[B, R, N]``: the mean over a regimen's drugs; where none is known, over its target genes."""
        views = [self.views(name, component_BC) for name, component_BC in self.project(batch, scaled).items()]
        view_MVBS = torch.stack([torch.stack(each) for each in views])
        drug_BRD, gene_BRG = batch["treatment_drug"], batch["treatment_gene"]
        known_BR = (drug_BRD >= FIRST_KNOWN).any(2)
        scores = []
        for weight_MV, answer_SI, mean_I in zip(self.weight, self.answer, self.mean, strict=True):
            answer_BI = (view_MVBS * weight_MV[..., None, None]).sum((0, 1)) @ answer_SI + mean_I
            scores.append(
                torch.where(known_BR, _mean_of(answer_BI, drug_BRD), _mean_of(answer_BI @ self.of_gene, gene_BRG))
            )
        return torch.stack(scores, dim=-1)


def _mean_of(answer_BI: Tensor, ids_BRX: Tensor) -> Tensor:
    """``[B, R]``: the mean of the answers of these ids; that of padding where all of them are."""
    each_BRX = answer_BI.gather(1, ids_BRX.flatten(1)).reshape(ids_BRX.shape)
    real_BRX = (ids_BRX > 0).to(each_BRX.dtype)
    mean_BR = (each_BRX * real_BRX).sum(2) / real_BRX.sum(2).clamp(min=1)
    return torch.where(real_BRX.sum(2) > 0, mean_BR, answer_BI[:, :1])


def _drugs_of_genes(schema: InputSchema) -> Tensor:
    """``[I, genes]``: share of each drug among the training drugs with this target; padding's is 1 where none has."""
    share = torch.zeros(len(schema.drugs) + FIRST_KNOWN, schema.n_genes)
    for drug, number in schema.drug_id.items():
        share[number, [schema.gene_id[gene] for gene in schema.targets.get(drug, ()) if gene in schema.gene_id]] = 1
    share[0] = (share.sum(0) == 0).to(share.dtype)
    return share / share.sum(0)


def distance(patient_BC: Tensor, landmark_SC: Tensor) -> Tensor:
    """``[B, S]``: Euclidean, rounded near zero; in float64, as near ones differ by little."""
    patient_BC, landmark_SC = patient_BC.double(), landmark_SC.double()
    square_BS = patient_BC.square().sum(1, keepdim=True) + landmark_SC.square().sum(1) - 2 * patient_BC @ landmark_SC.T
    return (square_BS.clamp(min=0) + _ROUND**2).sqrt().float()
