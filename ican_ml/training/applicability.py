"""Fit the network's embedding of patients, and what tells by it whether a patient is like those of training.

In: a trained network and the encoded episodes of its split. Out: principal axes in ``network.embedding``
(:mod:`ican_ml.model.embedding`), from training subjects, and an
:class:`~ican_ml.evaluation.applicability.Applicability` from these and the tuning subjects. One episode a
subject, drawn by the seed, so that nobody counts twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ican_ml.encoding.csr import Float64
from ican_ml.evaluation.applicability import Applicability, fit_applicability
from ican_ml.inputs.encode import EncodedPatients, Int64
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.embedding import COORDINATES
from ican_ml.model.omics import FeatureBag
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.records.vocabulary import UNKNOWN
from ican_ml.training.data import PatientData, PatientLoader

_MOST_SUBJECTS = 4096
_BATCH = 256
_POWER_ITERATIONS, _OVERSAMPLING = 4, 8
_SMALLEST = 1e-3  # of the largest singular value: below it an axis holds nothing


def fit_embedding(
    network: PatientTransformer,
    schema: InputSchema,
    encoded: EncodedPatients,
    *,
    train: Int64,
    tuning: Int64,
    subject: Int64,
    indication: npt.NDArray[np.str_],
    seed: int,
) -> Applicability | None:
    """Set the embedding in place.

    Parameters
    ----------
    train, tuning
        int64: rows of ``encoded``.
    subject, indication
        Of every row of ``encoded``.

    Returns
    -------
    Applicability
        None where tuning subjects are too few.
    """
    rng = np.random.default_rng(seed)
    chosen, others = (_one_each(rows, subject, rng) for rows in (train, tuning))
    network.eval()
    blocks = _dense_blocks(network, encoded, chosen)
    embedding = network.embedding
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for m, (name, bag) in enumerate(embedding.bags.items()):
            mean_F, axes_FK = _principal_axes(blocks[name])
            assert isinstance(bag, FeatureBag)
            bag.weight.copy_(axes_FK)
            embedding.shift[m] = -(mean_F @ axes_FK)
        if schema.summary_names:
            mean_F, axes_FK = _principal_axes(blocks["summary"])
            embedding.summary.weight.copy_(axes_FK.T)
            embedding.summary.bias.copy_(-(mean_F @ axes_FK))
    return fit_applicability(
        modalities=tuple(m.name for m in schema.modalities),
        training=_embedded(network, encoded, chosen),
        group=np.unique(indication[chosen], return_inverse=True)[1].astype(np.int64),
        tuning=_embedded(network, encoded, others),
        tuning_unknown=_unknown(encoded, others) if schema.vocabulary is not None else np.empty(0),
        has_record=schema.vocabulary is not None,
        has_summary=bool(schema.summary_names),
    )


def _one_each(rows: Int64, subject: Int64, rng: np.random.Generator) -> Int64:
    """One row of each subject; of some subjects where they are many. Ascending."""
    shuffled = rng.permutation(rows)
    _, first = np.unique(subject[shuffled], return_index=True)
    found = shuffled[first]
    return np.sort(rng.permutation(found)[:_MOST_SUBJECTS])


def _batches(encoded: EncodedPatients, rows: Int64) -> PatientLoader:
    return PatientLoader(PatientData(encoded=encoded, outcomes={}, rows=rows), batch_size=_BATCH)


def _dense_blocks(network: PatientTransformer, encoded: EncodedPatients, rows: Int64) -> dict[str, Tensor]:
    """By modality and for the summary, [N, F]: what the embedding is linear in; patients with the modality alone."""
    found: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for batch in _batches(encoded, rows):
            features, _ = network.normalise(batch)
            for name, bag in network.embedding.bags.items():
                assert isinstance(bag, FeatureBag)
                panel_B = batch[f"{name}_panel"]
                dense = bag.dense(batch[f"{name}_indptr"], batch[f"{name}_indices"], features[name], panel_B)
                found.setdefault(name, []).append(dense[panel_B > 0])
            found.setdefault("summary", []).append(batch["summary"])
    return {name: torch.cat(parts) for name, parts in found.items()}


def _principal_axes(block_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [F], and axes [F, K] on which training has variance 1; zero where there are fewer."""
    n, n_features = block_NF.shape
    axes_FK = torch.zeros(n_features, COORDINATES)
    count = min(COORDINATES, n - 1, n_features)
    if count < 1:
        return torch.zeros(n_features), axes_FK
    mean_F = block_NF.mean(0)
    wanted = min(count + _OVERSAMPLING, n, n_features)
    _, spread_K, right_FK = torch.svd_lowrank(block_NF - mean_F, q=wanted, niter=_POWER_ITERATIONS)
    kept = int((spread_K[:count] > _SMALLEST * spread_K[0].clamp(min=_SMALLEST)).sum())
    axes_FK[:, :kept] = right_FK[:, :kept] * (n**0.5 / spread_K[:kept])
    return mean_F, axes_FK


def _embedded(network: PatientTransformer, encoded: EncodedPatients, rows: Int64) -> Float64:
    with torch.inference_mode():
        parts: Sequence[Tensor] = [network.embed(batch) for batch in _batches(encoded, rows)]
    if not parts:
        return np.empty((0, 0))
    return np.asarray(torch.cat(list(parts)).double().numpy(), np.float64)


def _unknown(encoded: EncodedPatients, rows: Int64) -> Float64:
    """Share of unknown codes among the events that the network sees."""
    code = np.asarray(encoded.events.batch(rows)["code"])
    return np.asarray((code == UNKNOWN).sum(axis=1) / np.maximum((code > 0).sum(axis=1), 1), np.float64)
