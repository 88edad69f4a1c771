"""A bundle is used only if every byte is the one that was exported."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ican_ml.bundle.read import (
    APPLICABILITY,
    CALIBRATION,
    CARD,
    CARD_TEXT,
    CASES,
    GOLDEN,
    MANIFEST,
    MODEL,
    SCHEMA,
    BundleError,
    open_bundle,
)
from ican_ml.evaluation.applicability import EMBEDDING
from ican_ml.inputs.schema import InputSchema
from ican_ml.serving.predictor import Predictor
from tests.bundle.resealed import reseal

FILES = (MODEL, SCHEMA, CASES, GOLDEN, CALIBRATION, APPLICABILITY, CARD, CARD_TEXT, MANIFEST)


@pytest.fixture
def copy(sim_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sim_bundle, tmp_path / "bundle"))


def test_a_bundle_holds_what_was_exported(sim_bundle: Path, sim_schema: InputSchema) -> None:
    bundle = open_bundle(sim_bundle)
    assert json.dumps(bundle.schema.to_json()) == json.dumps(sim_schema.to_json())
    assert set(bundle.golden_inputs) == {entry["name"] for entry in bundle.inputs}
    outputs = {"response", "os", "sensitivity", EMBEDDING}
    assert len(bundle.golden_cases) == len(bundle.golden_outputs["response"])
    assert set(bundle.golden_outputs) == {entry["name"] for entry in bundle.outputs} == outputs
    assert sorted(path.name for path in sim_bundle.iterdir()) == sorted(FILES)


def test_the_declared_inputs_are_those_of_the_network(sim_bundle: Path) -> None:
    bundle = open_bundle(sim_bundle)
    for entry in bundle.inputs:
        values = bundle.golden_inputs[entry["name"]]
        assert values.dtype.name == entry["dtype"]
        sizes = [(size, expected) for size, expected in zip(values.shape, entry["shape"], strict=True)]
        assert all(size == expected for size, expected in sizes if isinstance(expected, int))


@pytest.mark.parametrize("name", FILES)
def test_one_changed_bit_is_refused(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    rng = np.random.default_rng(0)
    for place in (0, len(content) - 1, *rng.integers(0, len(content), 30).tolist()):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        (copy / name).write_bytes(changed)
        with pytest.raises(BundleError, match=r"copy (it|the bundle) again|export it again"):
            open_bundle(copy)


@pytest.mark.parametrize("change", ['"tolerance": 1e-05', '"opset": 20', " "])
def test_a_changed_manifest_is_refused(copy: Path, change: str) -> None:
    text = (copy / MANIFEST).read_text()
    assert change in text
    (copy / MANIFEST).write_text(text.replace(change, change.replace("0", "3") + " ", 1))
    with pytest.raises(BundleError, match=f"{MANIFEST} is not the file that was exported"):
        open_bundle(copy)


@pytest.mark.parametrize("name", [MODEL, SCHEMA, GOLDEN])
def test_a_missing_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match="expected the files"):
        open_bundle(copy)


def test_an_extra_file_is_refused(copy: Path) -> None:
    (copy / "model.onnx.data").write_bytes(b"")
    with pytest.raises(BundleError, match=r"found .*model\.onnx\.data"):
        open_bundle(copy)


def test_no_bundle_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(BundleError, match=r"expected a folder with manifest\.json, found none; give the folder"):
            open_bundle(path)


def test_another_format_is_refused(copy: Path) -> None:
    reseal(copy, format="ican-bundle/2")
    with pytest.raises(BundleError, match="expected format 'ican-bundle/1', got 'ican-bundle/2'"):
        open_bundle(copy)


@pytest.mark.parametrize("content", ["[]", "{", '"ican-bundle/1"'])
def test_a_manifest_that_is_none_is_refused(copy: Path, content: str) -> None:
    (copy / MANIFEST).write_text(content)
    with pytest.raises(BundleError, match="bundle: "):
        open_bundle(copy)


@pytest.mark.parametrize("error", [1e-3, np.nan])
def test_a_network_that_answers_otherwise_is_refused(copy: Path, error: float) -> None:
    with np.load(copy / GOLDEN) as golden:
        arrays = dict(golden)
    arrays["out/os"][0, 0, 0] += error
    np.savez(copy / GOLDEN, **arrays)
    reseal(copy)
    open_bundle(copy)
    with pytest.raises(BundleError, match="golden case of 'os' differs by"):
        Predictor(copy)
