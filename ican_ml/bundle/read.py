"""Open a bundle (format ``ican-bundle/1``): check every byte against the manifest, then read. Torch-free.

    model.onnx      the network, opset 20, one file
    schema.json     the input schema, and name, dtype and shape of every input and output of the network
    golden.npz      inputs and expected outputs of a few invented patients
    calibration.json  slope, intercept and prediction sets of binary tasks, where tuning subjects sufficed
    manifest.json   format, versions, tolerance, sha256 of every other file, and of its own contents

Nothing else may lie in the folder.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.evaluation.conformal import Calibration, calibrations
from ican_ml.inputs.schema import InputSchema

FORMAT = "ican-bundle/1"
MODEL, SCHEMA, GOLDEN, MANIFEST = "model.onnx", "schema.json", "golden.npz", "manifest.json"
CALIBRATION, CALIBRATION_FORMAT = "calibration.json", "ican-calibration/1"
_SEAL = "sealed"
Arrays = dict[str, npt.NDArray[np.generic]]


class BundleError(ValueError):
    """A bundle that must not be used: says what was expected and what came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A bundle whose files are those that were written.

    Attributes
    ----------
    model
        The ONNX file's bytes.
    schema
        How a patient becomes inputs.
    inputs, outputs
        The network's own: one ``{"name", "dtype", "shape"}`` each.
    golden_inputs, golden_outputs
        What the network must answer, within ``tolerance``.
    calibration
        By binary task, where it has one. The network's answers are calibrated already.
    """

    model: bytes
    schema: InputSchema
    inputs: tuple[Mapping[str, Any], ...]
    outputs: tuple[Mapping[str, Any], ...]
    golden_inputs: Arrays
    golden_outputs: Arrays
    tolerance: float
    manifest: Mapping[str, Any]
    calibration: Mapping[str, Calibration]


def open_bundle(path: str | Path) -> Bundle:
    """Read a bundle after checking the digest of every file; the bytes checked are the bytes used.

    Raises
    ------
    BundleError
        If a file is missing, was added or changed, or the format is another.
    """
    folder = Path(path)
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = json.loads(content)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"bundle: expected a folder with {MANIFEST}, found none; give the folder that training wrote "
            "(runs/<name>/bundle)"
        ) from None
    except ValueError as error:
        raise BundleError(f"bundle: {MANIFEST} is not valid JSON ({error}); copy the bundle again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise BundleError(f"bundle: expected format {FORMAT!r}, got {found!r}; export it again with this version")
    if content != sealed({name: value for name, value in manifest.items() if name != _SEAL}):
        raise BundleError(f"bundle: {MANIFEST} is not the file that was exported; copy it again")
    files = _read_checked(folder, manifest["sha256"])
    document = json.loads(files[SCHEMA])
    with np.load(io.BytesIO(files[GOLDEN]), allow_pickle=False) as golden:
        arrays = dict(golden)
    return Bundle(
        model=files[MODEL],
        schema=InputSchema.from_json(document["patient"]),
        inputs=tuple(document["inputs"]),
        outputs=tuple(document["outputs"]),
        golden_inputs={k.removeprefix("in/"): v for k, v in arrays.items() if k.startswith("in/")},
        golden_outputs={k.removeprefix("out/"): v for k, v in arrays.items() if k.startswith("out/")},
        tolerance=float(manifest["tolerance"]),
        manifest=manifest,
        calibration=_calibration(files.get(CALIBRATION)),
    )


def _calibration(content: bytes | None) -> dict[str, Calibration]:
    if content is None:
        return {}
    document = json.loads(content)
    if document["format"] != CALIBRATION_FORMAT:
        raise BundleError(
            f"bundle: expected {CALIBRATION} of format {CALIBRATION_FORMAT!r}, got {document['format']!r}; "
            "export it again with this version"
        )
    return calibrations(document["tasks"])


def _read_checked(folder: Path, digests: Mapping[str, str]) -> dict[str, bytes]:
    present = {entry.name for entry in folder.iterdir()} - {MANIFEST}
    if present != set(digests):
        raise BundleError(f"bundle: expected the files {sorted(digests)}, found {sorted(present)}; copy it again")
    files = {name: (folder / name).read_bytes() for name in digests}
    for name, content in files.items():
        if digest(content) != digests[name]:
            raise BundleError(f"bundle: {name} is not the file that was exported (its sha256 differs); copy it again")
    return files


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """The manifest's file: its contents, and their own sha256 as the last entry."""
    return json.dumps({**manifest, _SEAL: digest(json.dumps(manifest).encode())}, indent=1).encode()


def digest(content: bytes) -> str:
    """sha256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
