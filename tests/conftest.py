"""What all tests share: the cohorts to test on, one thread for each test process, and no GPU test without a GPU.

Two processes run the tests on two cores. Left alone, each would start a pool of threads for every core, and they would
wait for each other. The variables below are read when torch, OpenBLAS or xgboost start, so they are set here, before a
test imports these; processes that a test starts inherit them. Numba keeps its own count: its parallel loops are tested
in parallel.
"""

import os
from pathlib import Path

import pytest

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("WANDB_MODE", "offline")

_SIMULATED_SUBJECTS = 240


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where torch finds no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def cohorts() -> Path:
    """Give the folder of real cohorts that the environment variable ICAN_COHORTS names, or skip the test."""
    folder = os.environ.get("ICAN_COHORTS")
    if not folder:
        pytest.skip("needs real cohorts: set ICAN_COHORTS to the folder that holds them")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"ICAN_COHORTS: expected a folder, found none at {path}")
    return path


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a small simulated cohort, made once in each test process. Read it; never write into it."""
    from ican_ml.cohort.simulate import simulate

    out = tmp_path_factory.mktemp("cohort") / "simulated"
    simulate(out, subjects=_SIMULATED_SUBJECTS, seed=7)
    return out
