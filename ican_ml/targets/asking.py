"""Ask a network about encoded patients under other regimens than those of the cohort, or under one at a time.

Shapes: N patients, R regimens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from ican_ml.inputs.answer import summarise
from ican_ml.inputs.encode import Arrays, EncodedPatients, OmicsRows, collate
from ican_ml.inputs.regimens import Regimen, collate_regimens, encode_regimens
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import PatientTransformer

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


def regimens_for_all(schema: InputSchema, encoded: EncodedPatients, rows: Int64, regimens: Sequence[Regimen]) -> Arrays:
    """Network inputs of some patients, each asked about the same regimens."""
    measured = {name: (each.matrix, each.panel) for name, each in omics_of(encoded, rows).items()}
    asked = encode_regimens(schema, [regimens] * len(rows), measured)
    return _patients(encoded, rows) | collate_regimens(asked, np.arange(len(rows)))


def own_regimen(encoded: EncodedPatients, patient: Int64, slot: Int64) -> Arrays:
    """Network inputs of some episodes: a row each, asked about its own regimen alone."""
    known = encoded.regimens
    asked = replace(
        known,
        of_row=known.of_row[patient, slot][:, None],
        state=known.state[patient],
        state_known=known.state_known[patient],
    )
    return _patients(encoded, patient) | collate_regimens(asked, np.arange(len(patient)))


def omics_of(encoded: EncodedPatients, rows: Int64) -> dict[str, OmicsRows]:
    """Raw values of some patients, by modality."""
    return {name: OmicsRows(matrix=m.matrix.take(rows), panel=m.panel[rows]) for name, m in encoded.modalities.items()}


def benefit(network: PatientTransformer, arrays: Arrays, task: int) -> Float64:
    """[N, R]: probability of a binary task, expected days, or the value of a regression turned round."""
    asked = network.tasks[task]
    with torch.inference_mode():
        output = network(as_batch(arrays, device_of(network)))[asked.name].cpu().numpy()
    found = summarise(asked, output)
    return -found if asked.kind == "regression" else found


def as_batch(arrays: Arrays, device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """The arrays as tensors; on the CPU, if nothing else is said."""
    return {name: torch.from_numpy(np.ascontiguousarray(values)).to(device) for name, values in arrays.items()}


def device_of(network: PatientTransformer) -> torch.device:
    """Where the network lies."""
    return next(network.parameters()).device


def _patients(encoded: EncodedPatients, rows: Int64) -> Arrays:
    none = replace(encoded.regimens, of_row=np.full((encoded.n_rows, 1), -1, np.int64))
    return collate(replace(encoded, regimens=none), rows)
