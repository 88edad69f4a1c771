"""Nothing in a bundle tells of the machine that made it, or of a subject."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest

from ican_ml.bundle.private import check_private
from ican_ml.bundle.read import GOLDEN, SCHEMA, BundleError
from ican_ml.cohort.cohort import Cohort

_HOME = "/" + "home/anna/cohort"


def test_what_training_exports_is_clean(sim_bundle: Path, sim_cohort: Cohort) -> None:
    check_private(sim_bundle, sim_cohort.episodes["subject_id"].cast(str).to_list())


@pytest.mark.parametrize("text", [_HOME, "/" + "work/data", "file://" + _HOME, "C:\\\\Users\\\\anna"])
def test_a_path_is_found(sim_bundle: Path, tmp_path: Path, text: str) -> None:
    copy = Path(shutil.copytree(sim_bundle, tmp_path / "bundle"))
    (copy / SCHEMA).write_text((copy / SCHEMA).read_text().replace('"name":', f'"at": "{text}", "name":', 1))
    with pytest.raises(BundleError, match=r"schema\.json holds a path"):
        check_private(copy)


def test_a_subject_is_found_and_not_named(sim_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sim_bundle, tmp_path / "bundle"))
    (copy / SCHEMA).write_text((copy / SCHEMA).read_text().replace('"name":', '"of": 90210000000007, "name":', 1))
    with pytest.raises(BundleError, match=r"schema\.json holds a subject id") as told:
        check_private(copy, ["90210000000007"])
    assert "90210000000007" not in str(told.value)
    check_private(copy, ["9021000000000"])


def test_packed_arrays_are_looked_into(sim_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sim_bundle, tmp_path / "bundle"))
    packed = io.BytesIO()
    np.savez_compressed(packed, name=np.frombuffer(_HOME.encode(), np.uint8))
    (copy / GOLDEN).write_bytes(packed.getvalue())
    with pytest.raises(BundleError, match=r"golden\.npz holds a path"):
        check_private(copy)
