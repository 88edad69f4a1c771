"""What the network expects: vocabularies and statistics fitted on training subjects, as one JSON document.

The schema is written once by :func:`ican_ml.inputs.fit.fit_schema`, travels with every checkpoint and bundle, and is
all that :func:`ican_ml.inputs.encode.encode` needs to turn a patient into arrays. NumPy and the standard library only.

Identifiers shared by inputs, network and bundle: 0 is padding everywhere; a drug, a class, a gene and a record code
with id 1 is "unknown"; known ones follow from 2 in the order listed here. A feature's token is its position + 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.records.aggregates import Aggregates
from ican_ml.records.vocabulary import Vocabulary

ENCODING = "ican-inputs/1"
MODALITY_KINDS, TASK_KINDS = ("count", "binary", "continuous"), ("binary", "survival", "regression")
PADDING, UNKNOWN, FIRST_KNOWN = 0, 1, 2
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModalitySchema:
    """One omics modality as the network sees it.

    Attributes
    ----------
    kind
        ``count``, ``binary`` or ``continuous``.
    explicit
        Every measured entry is stored (dense source). Otherwise an entry that is not stored is zero where measured.
    features, genes
        Feature ids, and the gene symbol of each (the feature id where there is none).
    mean, inverse_sd, rank_scale
        float32 [features]. Centre and inverse spread of the normalised values; scale of the token order.
    panels
        Assay name to the positions of the features it measures; ``None`` = all. Assay number in the network = position
        in this mapping + 1; 0 = the modality was not measured.
    max_tokens
        How many features become tokens.
    position
        Of each feature.
    """

    name: str
    kind: str
    explicit: bool
    features: tuple[str, ...]
    genes: tuple[str, ...]
    mean: Float32
    inverse_sd: Float32
    rank_scale: Float32
    panels: Mapping[str, tuple[int, ...] | None]
    max_tokens: int
    position: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "position", {feature: i for i, feature in enumerate(self.features)})

    def measured(self) -> npt.NDArray[np.bool_]:
        """bool [panels + 1, features]: which features each assay number measures (row 0: none)."""
        mask = np.zeros((len(self.panels) + 1, len(self.features)), dtype=bool)
        for number, positions in enumerate(self.panels.values(), start=1):
            mask[number, slice(None) if positions is None else list(positions)] = True
        return mask


@dataclass(frozen=True, kw_only=True, slots=True)
class Covariate:
    """A column of the episodes table that the network may see: one-hot over ``categories``, or a number."""

    name: str
    categories: tuple[str, ...] | None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the summary columns it fills."""
        return (self.name,) if self.categories is None else tuple(f"{self.name}={c}" for c in self.categories)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """An outcome and its kind.

    Attributes
    ----------
    name
        Column of the episodes table (``response``), or the stem of ``<name>_time`` and ``<name>_event`` (``os``).
    kind
        ``binary``, ``survival`` or ``regression``.
    edges
        Survival only: right edges in days of the discrete-time intervals.
    centre, scale
        Regression only: mean and standard deviation of the training outcomes.
    """

    name: str
    kind: str
    edges: tuple[float, ...] = ()
    centre: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSchema:
    """Everything fitted that lies between a patient and the network. See the module docstring for the identifiers.

    ``feature_of_gene``, by modality: int64 [n_genes], position of each gene's first feature, -1 where it has none.
    """

    modalities: tuple[ModalitySchema, ...]
    genes: tuple[str, ...]
    drugs: tuple[str, ...]
    classes: tuple[str, ...]
    targets: Mapping[str, tuple[str, ...]]
    class_of: Mapping[str, str]
    vocabulary: Vocabulary | None
    aggregates: Aggregates | None
    max_events: int
    max_per_code: int
    covariates: tuple[Covariate, ...]
    summary_mean: Float32
    summary_inverse_sd: Float32
    tasks: tuple[Task, ...]
    gene_id: dict[str, int] = field(init=False, repr=False, compare=False)
    drug_id: dict[str, int] = field(init=False, repr=False, compare=False)
    class_id: dict[str, int] = field(init=False, repr=False, compare=False)
    feature_of_gene: dict[str, npt.NDArray[np.int64]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, values in (("gene_id", self.genes), ("drug_id", self.drugs), ("class_id", self.classes)):
            object.__setattr__(self, name, {value: i for i, value in enumerate(values, start=FIRST_KNOWN)})
        object.__setattr__(self, "feature_of_gene", {m.name: self._feature_of_gene(m) for m in self.modalities})

    @property
    def summary_names(self) -> tuple[str, ...]:
        """Column names of the ``summary`` input: record aggregates, then covariates."""
        aggregates = tuple(self.aggregates.names) if self.aggregates else ()
        return aggregates + tuple(column for covariate in self.covariates for column in covariate.columns)

    @property
    def n_genes(self) -> int:
        """Rows of the gene embedding, padding and unknown included."""
        return len(self.genes) + FIRST_KNOWN

    def _feature_of_gene(self, modality: ModalitySchema) -> npt.NDArray[np.int64]:
        feature = np.full(self.n_genes, -1, dtype=np.int64)
        for position in range(len(modality.genes) - 1, -1, -1):
            feature[self.gene_id[modality.genes[position]]] = position
        return feature

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_json` restores the same bits."""
        return {
            "encoding": ENCODING,
            "modalities": [_modality_to_json(m) for m in self.modalities],
            "genes": list(self.genes),
            "drugs": list(self.drugs),
            "classes": list(self.classes),
            "targets": {drug: list(genes) for drug, genes in self.targets.items()},
            "class_of": dict(self.class_of),
            "vocabulary": self.vocabulary.to_json() if self.vocabulary else None,
            "aggregates": self.aggregates.to_json() if self.aggregates else None,
            "max_events": self.max_events,
            "max_per_code": self.max_per_code,
            "covariates": [{"name": c.name, "categories": c.categories} for c in self.covariates],
            "summary_mean": self.summary_mean.tolist(),
            "summary_inverse_sd": self.summary_inverse_sd.tolist(),
            "tasks": [asdict(t) for t in self.tasks],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> InputSchema:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            If the document names another encoding.
        """
        if document.get("encoding") != ENCODING:
            raise ValueError(
                f"input schema: expected encoding {ENCODING!r}, got {document.get('encoding')!r}; "
                "export the bundle again with this version of ican_ml"
            )
        return cls(
            modalities=tuple(_modality_from_json(m) for m in document["modalities"]),
            genes=tuple(document["genes"]),
            drugs=tuple(document["drugs"]),
            classes=tuple(document["classes"]),
            targets={drug: tuple(genes) for drug, genes in document["targets"].items()},
            class_of=dict(document["class_of"]),
            vocabulary=Vocabulary.from_json(document["vocabulary"]) if document["vocabulary"] else None,
            aggregates=Aggregates.from_json(document["aggregates"]) if document["aggregates"] else None,
            max_events=int(document["max_events"]),
            max_per_code=int(document["max_per_code"]),
            covariates=tuple(
                Covariate(name=c["name"], categories=None if c["categories"] is None else tuple(c["categories"]))
                for c in document["covariates"]
            ),
            summary_mean=np.asarray(document["summary_mean"], dtype=np.float32),
            summary_inverse_sd=np.asarray(document["summary_inverse_sd"], dtype=np.float32),
            tasks=tuple(_task_from_json(t) for t in document["tasks"]),
        )


def _modality_to_json(modality: ModalitySchema) -> dict[str, Any]:
    return {
        "name": modality.name,
        "kind": modality.kind,
        "explicit": modality.explicit,
        "features": list(modality.features),
        "genes": list(modality.genes),
        "mean": modality.mean.tolist(),
        "inverse_sd": modality.inverse_sd.tolist(),
        "rank_scale": modality.rank_scale.tolist(),
        "panels": {name: None if p is None else list(p) for name, p in modality.panels.items()},
        "max_tokens": modality.max_tokens,
    }


def _check_kind(document: Mapping[str, Any], kinds: tuple[str, ...]) -> None:
    if document["kind"] not in kinds:
        raise ValueError(f"input schema: expected a kind among {', '.join(kinds)}, got {document['kind']!r:.80}")


def _task_from_json(document: Mapping[str, Any]) -> Task:
    _check_kind(document, TASK_KINDS)
    return Task(**{**document, "edges": tuple(document["edges"])})


def _modality_from_json(document: Mapping[str, Any]) -> ModalitySchema:
    _check_kind(document, MODALITY_KINDS)
    arrays = {key: np.asarray(document[key], dtype=np.float32) for key in ("mean", "inverse_sd", "rank_scale")}
    return ModalitySchema(
        name=document["name"],
        kind=document["kind"],
        explicit=bool(document["explicit"]),
        features=tuple(document["features"]),
        genes=tuple(document["genes"]),
        panels={name: None if p is None else tuple(p) for name, p in document["panels"].items()},
        max_tokens=int(document["max_tokens"]),
        **arrays,
    )
