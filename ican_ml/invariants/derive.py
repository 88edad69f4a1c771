"""What a run derives from a cohort before its results, for :mod:`ican_ml.invariants.leakage` to compare.

The steps are the run's own: split, schema, inputs, linear path, training, predictions of held-out episodes. One patient
is a batch of its own, since sums over a padded batch may differ in the last bit.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ican_ml.cohort.split import Split
from ican_ml.config import RunConfig
from ican_ml.fold import Fold, Prepared, fit_fold
from ican_ml.inputs.encode import collate
from ican_ml.prepare import prepare
from ican_ml.training.loop import fit, predict


def derive(folder: Path, *, config: RunConfig, train: bool = False) -> dict[str, Any]:
    """Split, schema, inputs and, where asked for, weights and predictions of a cohort.

    Parameters
    ----------
    folder
        The cohort.
    config
        Of the run; of its splits the first counts.
    train
        Fit the network, too.

    Returns
    -------
    dict
        See :func:`ican_ml.invariants.leakage.leakage_checks`.
    """
    prepared = prepare(replace(config, cohort=replace(config.cohort, path=str(folder))))
    split = next(iter(prepared.splits.values()))
    fold = fit_fold(config, prepared, split)
    each = [collate(fold.encoded, np.array([row])) for row in range(fold.encoded.n_rows)]
    derived: dict[str, Any] = {
        "split": {name: rows.tolist() for name, rows in asdict(split).items()},
        "fitted": fold.schema.to_json(),
        "inputs": {"patient": [each[row] for row in fold.states.patient], "slot": fold.states.slot},
    }
    return derived | (_train(config, prepared, fold, split) if train else {})


def _train(config: RunConfig, prepared: Prepared, fold: Fold, split: Split) -> dict[str, Any]:
    train, tuning = fold.data(prepared.outcomes, split.train, split.tuning)
    with TemporaryDirectory() as folder:
        result = fit(
            fold.schema,
            train,
            tuning,
            subject=fold.states.subject_id,
            model=config.model,
            training=config.training,
            trainer=config.trainer,
            folder=Path(folder),
            seed=config.seed,
        )
    outputs = predict(result.network, fold.encoded, fold.states.patient[split.held_out], batch_size=1)
    predictions: dict[str, list[Any]] = {name: [None] * len(prepared.episodes) for name in outputs}
    for name, output in outputs.items():
        for place, row in enumerate(split.held_out):
            predictions[name][row] = output[place, fold.states.slot[row]]
    weights = {name: value.numpy() for name, value in result.network.state_dict().items()}
    return {"tuned": {"curve": list(result.curve), "weights": weights}, "predictions": predictions}
