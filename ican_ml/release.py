"""A finished fit on disk -> its network, its bundle, and the model card that goes with it."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import torch

import ican_ml
from ican_ml.bundle.card import ModelCard, suppressed
from ican_ml.bundle.export import export_bundle
from ican_ml.bundle.read import CARD
from ican_ml.config import RunConfig
from ican_ml.evaluation.applicability import Applicability
from ican_ml.evaluation.conformal import calibrations
from ican_ml.fold import Prepared
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
from ican_ml.results import MODEL, TaskResults
from ican_ml.run_folder import RESULT, Stage

NETWORK_FILE, SCHEMA_FILE, MODEL_FILE, EARLIER = "network.pt", "schema.json", "model.json", "earlier"


def load_fitted(folder: Path) -> tuple[PatientTransformer, InputSchema]:
    """The network and schema that a fit stage left."""
    schema = InputSchema.from_json(json.loads((folder / SCHEMA_FILE).read_text()))
    model = ModelConfig(**json.loads((folder / MODEL_FILE).read_text()))
    earlier = load_fitted(folder / EARLIER)[0] if (folder / EARLIER).exists() else None
    network = PatientTransformer(model, schema, earlier)
    network.load_state_dict(torch.load(folder / NETWORK_FILE, weights_only=True))
    return network.eval(), schema


def export_fitted(
    network: PatientTransformer, schema: InputSchema, folder: Path, bundle: Path, card: ModelCard | None
) -> float:
    """The bundle of what a fit stage left in its folder; returns the largest difference between ONNX and torch."""
    known = json.loads((folder / RESULT).read_text())
    found = known["applicability"]
    return export_bundle(
        network,
        schema,
        bundle,
        calibration=calibrations(known["calibration"]),
        applicability=Applicability.from_json(found) if found is not None else None,
        card=card,
    )


def export_run(root: Path, bundle: Path, *, fold: str | None = None) -> tuple[str, float]:
    """The bundle of a finished run, with the card that the run wrote; returns the fold and the largest difference.

    Raises
    ------
    ValueError
        If the folder holds no finished fit, or none of that name.
    """
    finished = sorted((root / "private").glob(f"*/fit/{RESULT}"), key=lambda path: path.stat().st_mtime)
    fits = {path.parent.parent.name: path.parent for path in finished}
    if not fits or (fold is not None and fold not in fits):
        wanted = "a finished fit" if fold is None else f"the fit {fold!r}"
        raise ValueError(f"export: expected {wanted} in {root.name}, found {sorted(fits) or 'none'}; train first")
    name = fold or next(iter(fits))
    stored = root / "bundle" / CARD
    card = ModelCard.from_json(json.loads(stored.read_text())) if stored.exists() else None
    return name, export_fitted(*load_fitted(fits[name]), fits[name], bundle, card)


def card_of(config: RunConfig, prepared: Prepared, fitted: Stage, results: list[TaskResults]) -> ModelCard:
    """What the run says of its model; of the first fold's, where there are several, measured on all of them."""
    schema = InputSchema.from_json(json.loads((fitted.folder / SCHEMA_FILE).read_text()))
    cohort, episodes = prepared.cohort, prepared.episodes
    subjects = {}
    if "indication" in episodes.columns:
        counted = episodes.group_by(pl.col("indication").cast(pl.String).fill_null("unknown")).agg(
            pl.col("subject_id").n_unique()
        )
        subjects = suppressed(dict(counted.iter_rows()))
    performance = {}
    for task in results:
        by = {name: metrics.to_dict() for name, metrics in task.pooled.items()}
        performance[task.name] = {
            **by[MODEL],
            "baselines": {name: found["overall"] for name, found in by.items() if name != MODEL},
            "sets": task.sets.to_dict() if task.sets is not None else None,
        }
    return ModelCard(
        name=config.name,
        cohort={
            "Name": cohort.name,
            "Description": str(cohort.meta.get("description", "")),
            "Subjects": episodes["subject_id"].n_unique(),
            "Episodes": len(episodes),
            "Held-out folds": len(prepared.splits),
        },
        subjects=subjects,
        inputs={
            "Modalities": [f"{m.name} ({m.kind}, {len(m.features)} features)" for m in schema.modalities],
            "Record": "read" if schema.vocabulary is not None else "not read",
            "Covariates": [covariate.name for covariate in schema.covariates],
            "Treatments": len(schema.drugs),
        },
        performance=performance,
        versions={"ican_ml": ican_ml.__version__, "torch": torch.__version__},
    )
