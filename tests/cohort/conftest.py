"""Cohorts that tests change before they read them: six subjects, small enough to know by heart, and a simulated one."""

import json
import shutil
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.sparse import csr_matrix

SUBJECTS = (900001, 900002, 900003, 900004, 900005, 900006)
NOW = datetime(2020, 6, 1)


def write_modality(
    cohort: Path, name: str, *, X: Any, obs: dict[str, Any], var: dict[str, Any], kind: str | None, ids: list[str]
) -> None:
    """Write ``omics/<name>.h5ad``; ``ids`` are the feature ids."""
    sample_ids = obs.pop("index", [f"sample-{i}" for i in range(X.shape[0])])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(Observation|Variable) names are not unique", UserWarning)
        adata = anndata.AnnData(
            X=X, obs=pd.DataFrame(obs, index=pd.Index(sample_ids)), var=pd.DataFrame(var, index=pd.Index(ids))
        )
    if kind is not None:
        adata.uns["ican"] = {"kind": kind}
    (cohort / "omics").mkdir(exist_ok=True)
    adata.write_h5ad(cohort / "omics" / f"{name}.h5ad")


def mutation_parts() -> dict[str, Any]:
    """A sparse modality on two panels; its fourth sample has no time, its last subject has no episode."""
    X = csr_matrix(np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]], np.float32))
    return {
        "X": X,
        "obs": {
            "subject_id": np.array([SUBJECTS[0], SUBJECTS[0], SUBJECTS[1], 900099], np.int64),
            "sample_time": ["2020-01-01", "2020-06-02", "2020-06-01", ""],
            "panel": ["large", "large", "small", "small"],
        },
        "var": {"gene": ["KRAS", "TP53", ""], "panel:large": [True, True, True], "panel:small": [True, True, False]},
        "kind": "binary",
        "ids": ["KRAS", "TP53", "CUSTOM"],
    }


def expression_parts() -> dict[str, Any]:
    """A dense modality with a measured zero and a missing value."""
    return {
        "X": np.array([[0.0, 2.5], [np.nan, -1.0]], np.float32),
        "obs": {"subject_id": np.array(SUBJECTS[:2], np.int64)},
        "var": {"gene": ["ESR1", "ERBB2"]},
        "kind": "continuous",
        "ids": ["E1", "E2"],
    }


def episodes() -> pl.DataFrame:
    """Two tasks; the first subject has two episodes of the first."""
    subjects = [SUBJECTS[0], *SUBJECTS, SUBJECTS[2]]
    n = len(subjects)
    return pl.DataFrame(
        {
            "subject_id": subjects,
            "prediction_time": [NOW] * (n - 1) + [None],
            "task": ["benefit"] * (n - 1) + ["survival"],
            "treatment": [["OLD"], ["NEW", "OLD"], [], None, ["NEW"], ["OTHER"], [], []],
            "split": ["train"] * 5 + ["held_out"] * 2 + ["train"],
            "fold": [0, 0, 1, 2, 0, 1, 2, 2],
            "response": [True, False, True, None, False, True, False, None],
            "os_time": [10.0, 20.0, 30.0, None, 50.0, 60.0, 70.0, 80.0],
            "os_event": [True, False, True, None, False, True, False, True],
        },
        schema_overrides={"prediction_time": pl.Datetime("us"), "fold": pl.Int8},
    )


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    """Write the six subjects to disk and give the folder."""
    root = tmp_path / "mini"
    (root / "records" / "data").mkdir(parents=True)
    (root / "cohort.json").write_text(json.dumps({"format": "ican-cohort/1", "name": "mini"}))
    episodes().write_parquet(root / "episodes.parquet")
    treatments = {"drug": ["NEW", "OLD"], "targets": [["KRAS", "KRAS", "TP53"], []], "atc": ["L01XX99", None]}
    pl.DataFrame(treatments, schema_overrides={"targets": pl.List(pl.String)}).write_parquet(
        root / "treatments.parquet"
    )
    write_modality(root, "mutation", **mutation_parts())
    write_modality(root, "expression", **expression_parts())
    records = pl.DataFrame({"subject_id": [SUBJECTS[0]], "time": [NOW], "code": ["LAB//CEA"], "numeric_value": [3.0]})
    records.write_parquet(root / "records" / "data" / "0.parquet")
    return root


@pytest.fixture
def rewrite() -> Callable[..., None]:
    """Give a function that writes one modality of a cohort again with some parts changed."""
    parts = {"mutation": mutation_parts, "expression": expression_parts}

    def write(cohort: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        changed = parts[name]()
        change(changed)
        write_modality(cohort, name, **changed)

    return write


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a simulated cohort of 60 subjects. Read it; never write into it."""
    from ican_ml.cohort.simulate import simulate

    out = tmp_path_factory.mktemp("healthy") / "cohort"
    simulate(out, subjects=60, seed=3)
    return out


# Faults that training meets elsewhere: when it splits by that column, or when it reads records (in any order).
_NOT_TRAINING = {"subject-in-two-splits", "subject-in-two-folds", "unknown-split", "split-mismatch"}
_NO_EVENTS = {"missing-column", "wrong-dtype", "timezone"}


@pytest.fixture
def assert_named(healthy: Path, tmp_path: Path) -> Callable[..., None]:
    """Give a function that plants a fault in a copy of the healthy cohort and asserts what is found: no more, no less.

    It takes the change, the violations as (code, file), the severity, and the number of rows of the first. Training
    refuses the copy exactly where the validator calls the fault an error, as far as training reads it.
    """
    from ican_ml.cohort.cohort import CohortError, read_cohort
    from ican_ml.cohort.validate import validate

    def check(
        change: Callable[[Path], None], found: set[tuple[str, str]], n_rows: int | None = None, severity: str = "error"
    ) -> None:
        root = tmp_path / "cohort"
        shutil.copytree(healthy, root)
        change(root)
        report = validate(root)
        assert {(violation.code, violation.file) for violation in report.violations} == found
        for violation in report.violations:
            assert violation.expected
            assert violation.got
            assert violation.fix
        first = report.violations[0]
        assert first.severity == severity
        if n_rows is not None:
            assert (first.n_rows, len(first.rows)) == (n_rows, min(n_rows, 5))
        texts = " ".join(map(str, report.violations))
        assert not any(str(subject) in texts for subject in pl.read_parquet(healthy / "episodes.parquet")["subject_id"])
        assert str(tmp_path) not in texts

        errors = {violation.code for violation in report.violations if violation.severity == "error"}
        if first.file.startswith("records/") and not errors & _NO_EVENTS:
            return
        try:
            read_cohort(root)
        except CohortError:
            assert errors or found == {("no-episodes", "episodes.parquet")}, "training refuses what is called valid"
        else:
            assert errors <= _NOT_TRAINING, "training accepts what the validator calls an error"

    return check
