"""What a run derives from a cohort before its results, for :mod:`ican_ml.invariants.leakage` to compare.

The same steps as a run takes: split, schema, inputs, linear path, a training as short as is asked for, predictions of
held-out episodes. One patient is a batch of its own, since sums over a padded batch may differ in the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ican_ml.cohort.cohort import Cohort, read_cohort
from ican_ml.cohort.split import Split, split_episodes
from ican_ml.inputs.assemble import CohortStates, assemble
from ican_ml.inputs.encode import EncodedPatients, collate, encode
from ican_ml.inputs.fit import InputConfig, fit_schema
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import ModelConfig
from ican_ml.records.meds import read_records
from ican_ml.training.config import TrainerConfig, TrainingConfig
from ican_ml.training.data import PatientData
from ican_ml.training.loop import fit, predict
from ican_ml.training.outcomes import loss_arrays, read_outcomes


def derive(
    folder: Path,
    *,
    inputs: InputConfig | None = None,
    outcomes: Sequence[tuple[str, str]] = (("response", "binary"),),
    model: ModelConfig | None = None,
    training: TrainingConfig | None = None,
    seed: int = 7,
) -> dict[str, Any]:
    """Split, schema, inputs and, where ``training`` is given, weights and predictions of a cohort.

    Parameters
    ----------
    folder
        The cohort; split by its column ``split``, or by hash without one.
    inputs
        What may be seen of a patient.
    outcomes
        Name and kind of each task.
    model, training
        The network (default: the standard one), and how to fit it; without ``training`` nothing is trained.
    seed
        Of split and training.

    Returns
    -------
    dict
        See :func:`ican_ml.invariants.leakage.leakage_checks`.
    """
    inputs = inputs or InputConfig()
    cohort = read_cohort(folder, modalities=inputs.modalities)
    store = read_records(folder) if cohort.has_records and inputs.records else None
    episodes = cohort.episodes
    split = split_episodes(episodes, method="file" if "split" in episodes.columns else "hash", seed=seed)
    schema = fit_schema(cohort, store, episodes[split.train], inputs, outcomes=outcomes)
    states = assemble(cohort, store, episodes, inputs.covariates)
    encoded = encode(schema, states.patients)
    each = [collate(encoded, np.array([row])) for row in range(encoded.n_rows)]
    derived: dict[str, Any] = {
        "split": {name: rows.tolist() for name, rows in asdict(split).items()},
        "fitted": schema.to_json(),
        "inputs": {"patient": [each[row] for row in states.patient], "slot": states.slot},
    }
    if training is not None:
        derived |= _train(cohort, schema, states, encoded, split, model or ModelConfig(), training, seed)
    return derived


def _train(
    cohort: Cohort,
    schema: InputSchema,
    states: CohortStates,
    encoded: EncodedPatients,
    split: Split,
    model: ModelConfig,
    training: TrainingConfig,
    seed: int,
) -> dict[str, Any]:
    outcomes = read_outcomes(cohort.episodes, {task.name: task.kind for task in schema.tasks})
    arrays: dict[str, Any] = {}
    for task in schema.tasks:
        arrays |= loss_arrays(task, outcomes[task.name], states)
    data = PatientData(encoded=encoded, outcomes=arrays, rows=np.arange(encoded.n_rows))
    train, tuning = (data.of_episodes(states.patient[rows], states.slot[rows]) for rows in (split.train, split.tuning))
    with TemporaryDirectory() as folder:
        result = fit(
            schema,
            train,
            tuning,
            subject=states.subject_id,
            model=model,
            training=training,
            trainer=TrainerConfig(),
            folder=Path(folder),
            seed=seed,
        )
    outputs = predict(result.network, encoded, states.patient[split.held_out], batch_size=1)
    predictions: dict[str, list[Any]] = {name: [None] * len(cohort.episodes) for name in outputs}
    for name, output in outputs.items():
        for place, row in enumerate(split.held_out):
            predictions[name][row] = output[place, states.slot[row]]
    weights = {name: value.numpy() for name, value in result.network.state_dict().items()}
    return {"tuned": {"curve": list(result.curve), "weights": weights}, "predictions": predictions}
