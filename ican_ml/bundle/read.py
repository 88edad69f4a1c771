"""Open a bundle (format ``ican-bundle/1``): check every byte against the manifest, then read. Torch-free.

    model.onnx          the network, opset 20, one file
    schema.json         the input schema, and name, dtype, shape and range of every input and output of the network
    golden.json         a few invented patients, each with treatments to ask about
    golden.npz          what they become as inputs of the network, its outputs, and the predictions made of these
    calibration.json    slope, intercept and prediction sets of binary tasks, where tuning subjects sufficed
    applicability.json  how patients like those of training look to the network, where it was fitted
    model_card.md       what the model is for, how well it does it and for whom; model_card.json has the same
    manifest.json       format, versions, tolerance, sha256 of every other file, and of its own contents

Nothing else may lie in the folder. Nothing in it is trusted: names, sizes and the graph's operators are checked before
anything is parsed. Whoever may write the folder can seal another bundle, though; :attr:`Bundle.digest` names one bundle
and no other, to be compared with what the research environment says.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.bundle.graph import GraphError, check_graph
from ican_ml.evaluation.applicability import Applicability
from ican_ml.evaluation.conformal import Calibration, calibrations
from ican_ml.inputs.encode import Arrays
from ican_ml.inputs.schema import InputSchema

FORMAT = "ican-bundle/1"
MODEL, SCHEMA, GOLDEN, MANIFEST = "model.onnx", "schema.json", "golden.npz", "manifest.json"
CASES = "golden.json"
CALIBRATION, CALIBRATION_FORMAT = "calibration.json", "ican-calibration/1"
APPLICABILITY, CARD, CARD_TEXT = "applicability.json", "model_card.json", "model_card.md"
OPSET = 20
_OPTIONAL = (CASES, CALIBRATION, APPLICABILITY, CARD, CARD_TEXT)
_LARGEST = {MODEL: 1 << 31, SCHEMA: 1 << 28, GOLDEN: 1 << 26}
_LARGEST_OTHER = 1 << 24
_LARGEST_TOLERANCE = 1e-3
MALFORMED = (
    *(KeyError, TypeError, AttributeError, IndexError, ArithmeticError, ValueError, MemoryError, EOFError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)
_SEAL = "sealed"


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
    golden_cases
        Invented patients and treatments (:mod:`ican_ml.bundle.golden`); none in a bundle of before.
    golden_inputs, golden_outputs, golden_answers
        What these become, what the network must answer, within ``tolerance``, and the prediction of each task.
    calibration
        By binary task, where it has one. The network's answers are calibrated already.
    applicability
        Whether a patient is like those of training; None in a bundle that was exported without.
    card
        The model card; empty in a bundle that was exported without.
    digest
        sha256 of the manifest, and so of all.
    """

    model: bytes
    schema: InputSchema
    inputs: tuple[Mapping[str, Any], ...]
    outputs: tuple[Mapping[str, Any], ...]
    golden_cases: tuple[Mapping[str, Any], ...]
    golden_inputs: Arrays
    golden_outputs: Arrays
    golden_answers: Arrays
    tolerance: float
    manifest: Mapping[str, Any]
    calibration: Mapping[str, Calibration]
    applicability: Applicability | None
    card: Mapping[str, Any]
    digest: str


def open_bundle(path: str | Path) -> Bundle:
    """Read a bundle after checking the digest of every file; the bytes checked are the bytes used.

    Raises
    ------
    BundleError
        If a file is missing, was added or changed, or the format is another.
    """
    folder = Path(path)
    try:
        content = _read(folder, MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"bundle: expected a folder with {MANIFEST}, found none; give the folder that training wrote "
            "(runs/<name>/bundle)"
        ) from None
    manifest = _parsed(MANIFEST, content)
    if manifest.get("format") != FORMAT:
        found = manifest.get("format")
        raise BundleError(f"bundle: expected format {FORMAT!r}, got {found!r:.80}; export it again with this version")
    if content != sealed({name: value for name, value in manifest.items() if name != _SEAL}):
        raise BundleError(f"bundle: {MANIFEST} is not the file that was exported; copy it again")
    try:
        return _opened(_read_checked(folder, manifest["sha256"]), manifest, content)
    except GraphError as error:
        raise BundleError(f"bundle: {MODEL}: {error}; export it again with this version") from None
    except MALFORMED as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(
            f"bundle: the files do not describe a model ({type(error).__name__}: {error!s:.200}); export it again "
            "with this version"
        ) from None


def _opened(files: Mapping[str, bytes], manifest: Mapping[str, Any], content: bytes) -> Bundle:
    check_graph(files[MODEL], OPSET)
    document = _parsed(SCHEMA, files[SCHEMA])
    arrays = _golden(files[GOLDEN])
    tolerance = float(manifest["tolerance"])
    if not 0 < tolerance <= _LARGEST_TOLERANCE:
        raise BundleError(f"bundle: expected a tolerance in (0, {_LARGEST_TOLERANCE:g}], got {tolerance:g}")
    return Bundle(
        model=files[MODEL],
        schema=InputSchema.from_json(document["patient"]),
        inputs=tuple(document["inputs"]),
        outputs=tuple(document["outputs"]),
        golden_cases=tuple(_parsed(CASES, files[CASES])["cases"]) if CASES in files else (),
        golden_inputs=_named("in/", arrays),
        golden_outputs=_named("out/", arrays),
        golden_answers=_named("answer/", arrays),
        tolerance=tolerance,
        manifest=manifest,
        calibration=_calibration(files.get(CALIBRATION)),
        applicability=_applicability(files.get(APPLICABILITY)),
        card=_parsed(CARD, files[CARD]) if CARD in files else {},
        digest=digest(content),
    )


def _applicability(content: bytes | None) -> Applicability | None:
    return None if content is None else Applicability.from_json(_parsed(APPLICABILITY, content))


def _parsed(name: str, content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"bundle: {name} is not valid JSON ({error!s:.80}); copy the bundle again") from None
    if not isinstance(document, dict):
        raise BundleError(f"bundle: expected {name} to hold an object, got {type(document).__name__}")
    return document


def _golden(content: bytes) -> Arrays:
    """Arrays of the golden cases; never more of them than a file may hold, however well they are packed."""
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        unpacked = sum(entry.file_size for entry in packed.infolist())
    if unpacked > _LARGEST[GOLDEN]:
        raise BundleError(f"bundle: expected {GOLDEN} to unpack to at most {_LARGEST[GOLDEN]} bytes, got {unpacked}")
    with np.load(io.BytesIO(content), allow_pickle=False) as golden:
        return dict(golden)


def _named(prefix: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def _calibration(content: bytes | None) -> dict[str, Calibration]:
    if content is None:
        return {}
    document = _parsed(CALIBRATION, content)
    if document["format"] != CALIBRATION_FORMAT:
        raise BundleError(
            f"bundle: expected {CALIBRATION} of format {CALIBRATION_FORMAT!r}, got {document['format']!r}; "
            "export it again with this version"
        )
    return calibrations(document["tasks"])


def _read_checked(folder: Path, digests: Mapping[str, str]) -> dict[str, bytes]:
    present = {entry.name for entry in folder.iterdir()} - {MANIFEST}
    required = {MODEL, SCHEMA, GOLDEN}
    if present != set(digests) or not required <= present <= required | set(_OPTIONAL):
        named = sorted(set(digests) & {*required, *_OPTIONAL} | required)
        raise BundleError(f"bundle: expected the files {named}, found {sorted(present)}; copy it again")
    files = {name: _read(folder, name) for name in sorted(present)}
    for name, content in files.items():
        if digest(content) != digests[name]:
            raise BundleError(f"bundle: {name} is not the file that was exported (its sha256 differs); copy it again")
    return files


def _read(folder: Path, name: str) -> bytes:
    """A plain file of the folder, not larger than what it may be."""
    most = _LARGEST.get(name, _LARGEST_OTHER)
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise
        raise BundleError(f"bundle: expected {name} to be a plain file ({error.strerror}); copy it again") from None
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(f"bundle: expected {name} to be a plain file, got something else; copy it again")
        if found.st_size > most:
            raise BundleError(f"bundle: expected {name} of at most {most} bytes, got {found.st_size}")
        return file.read(most + 1)


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """The manifest's file: its contents, and their own sha256 as the last entry."""
    return json.dumps({**manifest, _SEAL: digest(json.dumps(manifest).encode())}, indent=1).encode()


def deviation(got: npt.NDArray[np.generic], expected: npt.NDArray[np.generic]) -> float:
    """Largest difference between two arrays: of integers as it is, of numbers beyond +-1 as a share of them.

    Infinite where their shapes differ.
    """
    if got.shape != expected.shape:
        return float("inf")
    if expected.dtype.kind == "i":
        return float(np.abs(got.astype(np.int64) - expected.astype(np.int64)).max(initial=0))
    exact = expected.astype(np.float64)
    return float((np.abs(got.astype(np.float64) - exact) / np.maximum(1.0, np.abs(exact))).max(initial=0.0))


def digest(content: bytes) -> str:
    """sha256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
