"""What every input array of a network may hold: axes, and the least and greatest value. NumPy only.

onnxruntime takes an id of -1 for the last one, and NaN for a number; so whatever does not come from
:mod:`ican_ml.inputs.encode` is checked here before a network sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ican_ml.inputs.schema import FIRST_KNOWN, InputSchema
from ican_ml.records.vocabulary import FIRST_KNOWN as FIRST_CODE

_LARGEST = float(np.finfo(np.float32).max)
_SUMMARY = 10.0
Arrays = Mapping[str, npt.NDArray[np.generic]]


class InputError(ValueError):
    """An input array that no patient can give: names it, what was expected and what came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """One input: its axes (a letter varies, and has the same length wherever it stands), and its range, ends included.

    Letters: B patients, R regimens, D drugs, G target genes, T events; ``<m>.K`` tokens and ``<m>.nnz``
    stored values of the modality m.
    """

    axes: tuple[str | int, ...]
    low: float
    high: float


def input_limits(schema: InputSchema) -> dict[str, Limit]:
    """By input name, see :mod:`ican_ml.inputs.encode`."""
    found: dict[str, Limit] = {}
    for m in schema.modalities:
        lowest = 0.0 if m.kind in ("count", "binary") else -_LARGEST
        n_features, stored, tokens = len(m.features), f"{m.name}.nnz", f"{m.name}.K"
        found[f"{m.name}_indptr"] = Limit(axes=("B + 1",), low=0, high=float(2**53))
        found[f"{m.name}_indices"] = Limit(axes=(stored,), low=0, high=n_features - 1)
        found[f"{m.name}_values"] = Limit(axes=(stored,), low=lowest, high=_LARGEST)
        found[f"{m.name}_total"] = Limit(axes=("B",), low=lowest, high=_LARGEST)
        found[f"{m.name}_panel"] = Limit(axes=("B",), low=0, high=len(m.panels))
        found[f"{m.name}_tokens"] = Limit(axes=("B", tokens), low=0, high=n_features)
        found[f"{m.name}_token_values"] = Limit(axes=("B", tokens), low=lowest, high=_LARGEST)
    codes = schema.vocabulary.n_ids if schema.vocabulary else FIRST_CODE
    found["event_code"] = Limit(axes=("B", "T"), low=0, high=codes - 1)
    found["event_value"] = Limit(axes=("B", "T"), low=-_LARGEST, high=_LARGEST)
    found["event_has_value"] = Limit(axes=("B", "T"), low=0, high=1)
    found["event_gap"] = Limit(axes=("B", "T"), low=-1, high=_LARGEST)
    found["event_age"] = Limit(axes=("B", "T"), low=0, high=_LARGEST)
    found["summary"] = Limit(axes=("B", len(schema.summary_names)), low=-_SUMMARY, high=_SUMMARY)
    found["treatment_drug"] = Limit(axes=("B", "R", "D"), low=0, high=len(schema.drugs) + FIRST_KNOWN - 1)
    found["treatment_class"] = Limit(axes=("B", "R", "D"), low=0, high=len(schema.classes) + FIRST_KNOWN - 1)
    found["treatment_gene"] = Limit(axes=("B", "R", "G"), low=0, high=schema.n_genes - 1)
    state = ("B", "R", "G", len(schema.modalities))
    found["treatment_state"] = Limit(axes=state, low=-_LARGEST, high=_LARGEST)
    found["treatment_state_known"] = Limit(axes=state, low=0, high=1)
    return found


def check_inputs(limits: Mapping[str, Limit], arrays: Arrays) -> None:
    """Refuse arrays that :func:`ican_ml.inputs.encode.collate` cannot have made.

    Raises
    ------
    InputError
        A shape, or a value that is not finite or out of range, or rows that do not add up.
    """
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        limit = limits[name]
        if len(array.shape) != len(limit.axes):
            raise InputError(f"{name}: expected {len(limit.axes)} axes {list(limit.axes)}, got shape {array.shape}")
        for axis, size in zip(limit.axes, array.shape, strict=True):
            letter = "B" if axis == "B + 1" else axis
            size = size - 1 if axis == "B + 1" else size
            expected = axis if isinstance(axis, int) else sizes.setdefault(str(letter), size)
            if size != expected:
                raise InputError(f"{name}: expected {expected} along {letter!r}, got {size}")
        if not np.isfinite(array).all():
            raise InputError(f"{name}: expected finite numbers, got NaN or infinity")
        if array.size and not (limit.low <= array.min() and array.max() <= limit.high):
            got = array.min() if array.min() < limit.low else array.max()
            raise InputError(f"{name}: expected values from {limit.low:g} to {limit.high:g}, got {got:g}")
    if empty := sorted(letter for letter, size in sizes.items() if size < 1 and not letter.endswith(".nnz")):
        raise InputError(f"inputs: expected at least 1 along {empty[0]!r}, got none")
    for name, array in arrays.items():
        if name.endswith("_indptr"):
            _check_rows(name, array, arrays)


def _check_rows(name: str, indptr: npt.NDArray[np.generic], arrays: Arrays) -> None:
    indices_name = name.removesuffix("indptr") + "indices"
    indices = arrays[indices_name]
    steps = np.diff(indptr.astype(np.int64))
    if indptr[0] != 0 or (steps < 0).any() or indptr[-1] != len(indices):
        raise InputError(f"{name}: expected to rise from 0 to {len(indices)}, the number of {indices_name}")
    within = np.ones(max(len(indices) - 1, 0), bool)
    starts = indptr[1:-1].astype(np.int64)
    within[starts[(starts > 0) & (starts < len(indices))] - 1] = False
    if (np.diff(indices.astype(np.int64)) <= 0)[within].any():
        raise InputError(f"{indices_name}: expected ascending features in each row, none twice")
