"""Whether a patient is like those a network was trained on, and enough of it is known: NumPy only, for the service.

In: the network's ``patient_embedding`` (:mod:`ican_ml.model.embedding`), in blocks: each modality, then the
summary. For each block the squared Mahalanobis distance to the nearest of the training indications' means, under one
covariance within indications (Lee et al. 2018, arXiv:1807.03888). Its logarithm is centred and scaled by the tuning
subjects, and the *score* of a patient is the largest of its blocks': a patient is unlike the others when one of its
modalities is. The threshold is the score that the stated share of tuning subjects stays below (split conformal).

Aggregates alone are kept: means of at least `MIN_SUBJECTS` subjects, a covariance, three numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FORMAT = "ican-applicability/1"
EMBEDDING = "patient_embedding"
MIN_SUBJECTS = 10
KNOWN_SHARE = 0.98
_SHRINKAGE = 0.05
_LEAST_UNKNOWN = 0.25
_SMALLEST = 1e-12
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """Whether to believe an answer.

    Attributes
    ----------
    score, threshold
        How unlike the training patients this one is, and from where on it is not answered for. A score of 0 is usual,
        its unit the standard deviation among tuning subjects.
    parts
        The score by block.
    unknown_codes
        Share of the record's events that the vocabulary does not know at all.
    abstain
        The model should not be asked about this patient.
    reasons
        Why, in sentences; empty unless ``abstain``.
    """

    score: float
    threshold: float
    parts: dict[str, float]
    unknown_codes: float
    abstain: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One block of the embedding: means [groups, K] and precision [K, K]; centre and spread of the log distance."""

    means: Float64
    precision: Float64
    centre: float
    spread: float

    def log_distance(self, coordinates: Float64) -> Float64:
        """[N, K] -> [N]."""
        away = coordinates[:, None] - self.means[None]
        squared = np.einsum("ngk,kl,ngl->ng", away, self.precision, away).min(axis=1)
        return np.asarray(np.log(np.maximum(squared, _SMALLEST)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Applicability:
    """What is kept of the training patients.

    Attributes
    ----------
    modalities
        In the order of the embedding.
    blocks
        By name; one without an entry says nothing (too few subjects, or no columns).
    has_record
        Whether the network reads records.
    threshold, known_share
        Of the score, and the share of tuning subjects below it.
    most_unknown
        Largest share of unknown codes that is answered for.
    n_subjects
        That the threshold comes from.
    """

    modalities: tuple[str, ...]
    blocks: Mapping[str, Block]
    has_record: bool
    threshold: float
    most_unknown: float
    n_subjects: int
    known_share: float = KNOWN_SHARE

    def parts(self, embedding: Float64) -> Float64:
        """Scores by block [N, modalities + 1]; NaN where there is nothing to tell by."""
        coordinates, measured = _split(embedding, len(self.modalities))
        found = np.full((len(embedding), len(coordinates)), np.nan)
        for i, name in enumerate([*self.modalities, _SUMMARY]):
            if name in self.blocks:
                block = self.blocks[name]
                score = (block.log_distance(coordinates[i]) - block.centre) / block.spread
                found[:, i] = np.where(measured[:, i], score, np.nan)
        return found

    def judge(
        self, embedding: npt.NDArray[np.generic], record: Mapping[str, float], missing: Sequence[str]
    ) -> Judgement:
        """Of one patient: its embedding [E], and the notes that reading it left (``PatientNotes``)."""
        parts = self.parts(embedding.astype(np.float64)[None])[0]
        named = {name: float(s) for name, s in zip([*self.modalities, _SUMMARY], parts, strict=True) if s == s}
        score = max(named.values(), default=0.0)
        unknown = float(record.get("unknown", 0.0))
        reasons = []
        if score > self.threshold:
            worst = max(named, key=named.__getitem__)
            reasons.append(
                f"unlike the patients that the model was trained on: {worst} scores {score:.1f}, at most "
                f"{self.threshold:.1f} is usual"
            )
        sources = len(self.modalities) + self.has_record
        if sources and len(missing) == sources:
            reasons.append("nothing to go by: no modality was measured, and the record has no known event")
        if unknown > self.most_unknown:
            reasons.append(
                f"the model knows too little of the record: {unknown:.0%} of its events have unknown codes, at most "
                f"{self.most_unknown:.0%} is usual"
            )
        return Judgement(
            score=score,
            threshold=self.threshold,
            parts=named,
            unknown_codes=unknown,
            abstain=bool(reasons),
            reasons=tuple(reasons),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "format": FORMAT,
            "modalities": list(self.modalities),
            "blocks": {
                name: {
                    "means": block.means.tolist(),
                    "precision": block.precision.tolist(),
                    "centre": block.centre,
                    "spread": block.spread,
                }
                for name, block in self.blocks.items()
            },
            "has_record": self.has_record,
            "threshold": self.threshold,
            "most_unknown": self.most_unknown,
            "n_subjects": self.n_subjects,
            "known_share": self.known_share,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Applicability:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            If the document is of another format.
        """
        if document.get("format") != FORMAT:
            raise ValueError(f"applicability: expected format {FORMAT!r}, got {document.get('format')!r:.80}")
        return cls(
            modalities=tuple(document["modalities"]),
            blocks={
                name: Block(
                    means=np.asarray(block["means"], np.float64),
                    precision=np.asarray(block["precision"], np.float64),
                    centre=float(block["centre"]),
                    spread=float(block["spread"]),
                )
                for name, block in document["blocks"].items()
            },
            has_record=bool(document["has_record"]),
            threshold=float(document["threshold"]),
            most_unknown=float(document["most_unknown"]),
            n_subjects=int(document["n_subjects"]),
            known_share=float(document["known_share"]),
        )


_SUMMARY = "summary"


def fit_applicability(
    *,
    modalities: tuple[str, ...],
    training: Float64,
    group: npt.NDArray[np.int64],
    tuning: Float64,
    tuning_unknown: Float64,
    has_record: bool,
    has_summary: bool,
) -> Applicability | None:
    """From embeddings of one row a subject.

    Parameters
    ----------
    training, tuning
        [N, E]; tuning subjects have not shaped the embedding.
    group
        int64 [N]: the training subjects' indications.
    tuning_unknown
        Share of unknown codes in each tuning subject's record.

    Returns
    -------
    Applicability
        None with fewer than 2 * `MIN_SUBJECTS` tuning subjects: no threshold could be told.
    """
    if len(tuning) < 2 * MIN_SUBJECTS:
        return None
    known, is_known = _split(training, len(modalities))
    others, is_other = _split(tuning, len(modalities))
    blocks = {}
    for i, name in enumerate([*modalities, *([_SUMMARY] if has_summary else [])]):
        rows, checked = is_known[:, i], is_other[:, i]
        if min(rows.sum(), checked.sum()) >= 2 * MIN_SUBJECTS:
            blocks[name] = _block(known[i][rows], group[rows], others[i][checked])
    found = Applicability(
        modalities=modalities,
        blocks=blocks,
        has_record=has_record,
        threshold=math.inf,
        most_unknown=_LEAST_UNKNOWN,
        n_subjects=len(tuning),
    )
    parts = found.parts(tuning)
    scores = np.sort(np.where(np.isnan(parts), -np.inf, parts).max(axis=1))
    rank = min(len(scores), math.ceil((len(scores) + 1) * KNOWN_SHARE))
    threshold = float(scores[rank - 1])
    if not math.isfinite(threshold):
        return None
    unknown = float(np.quantile(tuning_unknown, KNOWN_SHARE)) if len(tuning_unknown) else 0.0
    return Applicability(
        modalities=modalities,
        blocks=blocks,
        has_record=has_record,
        threshold=threshold,
        most_unknown=max(_LEAST_UNKNOWN, 2 * unknown),
        n_subjects=len(tuning),
    )


def _block(known: Float64, group: npt.NDArray[np.int64], others: Float64) -> Block:
    names, of = np.unique(group, return_inverse=True)
    large = np.flatnonzero(np.bincount(of) >= MIN_SUBJECTS)
    means = np.stack([known[of == i].mean(axis=0) for i in large] or [known.mean(axis=0)])
    place = np.full(len(names), -1)
    place[large] = np.arange(len(large))
    closest = ((known[:, None] - means[None]) ** 2).sum(axis=2).argmin(axis=1)
    nearest = np.where(place[of] >= 0, place[of], closest)
    within = known - means[nearest]
    covariance = within.T @ within / len(within)
    size = max(float(np.trace(covariance)) / len(covariance), _SMALLEST)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * size * np.eye(len(covariance))
    block = Block(means=means, precision=np.linalg.inv(covariance), centre=0.0, spread=1.0)
    logs = block.log_distance(others)
    return Block(
        means=block.means,
        precision=block.precision,
        centre=float(logs.mean()),
        spread=max(float(logs.std()), 1e-6),
    )


def _split(embedding: Float64, n_modalities: int) -> tuple[list[Float64], npt.NDArray[np.bool_]]:
    """Coordinates of each block [N, K], and whether it was measured [N, blocks]; the summary always was."""
    width = (embedding.shape[1] - n_modalities) // (n_modalities + 1)
    coordinates = [embedding[:, i * width : (i + 1) * width] for i in range(n_modalities + 1)]
    measured = embedding[:, embedding.shape[1] - n_modalities :] > 0
    return coordinates, np.concatenate([measured, np.ones((len(embedding), 1), bool)], axis=1)
