"""What all tests share: the cohorts to test on, one thread for each test process, and no GPU test without a GPU.

Two processes run the tests on two cores. Left alone, each would start a pool of threads for every core, and they would
wait for each other. The variables below are read when torch, OpenBLAS or xgboost start, so they are set here, before a
test imports these; processes that a test starts inherit them. Numba keeps its own count: its parallel loops are tested
in parallel.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ican_ml.cohort.cohort import Cohort
    from ican_ml.evaluation.applicability import Applicability
    from ican_ml.inputs.assemble import CohortStates
    from ican_ml.inputs.schema import InputSchema
    from ican_ml.model.patient_transformer import PatientTransformer
    from ican_ml.records.store import RecordStore

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_SIMULATED_SUBJECTS = 240


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where torch or CuPy is missing, or torch finds no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    missing = [name for name in ("torch", "cupy") if not find_spec(name)]
    if not missing:
        import torch

        missing = [] if torch.cuda.is_available() else ["a CUDA device"]
    for item in marked if missing else ():
        item.add_marker(pytest.mark.skip(reason=f"needs {' and '.join(missing)}"))


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


@pytest.fixture(scope="session")
def sim_cohort(simulated: Path) -> "Cohort":
    """Give the simulated cohort in memory, with one outcome of each kind: response, os and sensitivity."""
    from dataclasses import replace

    import polars as pl

    from ican_ml.cohort.cohort import read_cohort

    cohort = read_cohort(simulated)
    return replace(cohort, episodes=cohort.episodes.with_columns((pl.col("os_time") / 100).alias("sensitivity")))


@pytest.fixture(scope="session")
def sim_records(simulated: Path) -> "RecordStore":
    """Give the records of the simulated cohort."""
    from ican_ml.records.meds import read_records

    return read_records(simulated)


@pytest.fixture(scope="session")
def sim_schema(sim_cohort: "Cohort", sim_records: "RecordStore") -> "InputSchema":
    """Give the input schema of its training rows, for three outcomes."""
    import polars as pl

    from ican_ml.inputs.fit import InputConfig, fit_schema

    return fit_schema(
        sim_cohort,
        sim_records,
        sim_cohort.episodes.filter(pl.col("split") == "train"),
        InputConfig(covariates=["indication", "line"], max_tokens=16, max_events=24, max_per_code=12),
        outcomes=[("response", "binary"), ("os", "survival"), ("sensitivity", "regression")],
    )


@pytest.fixture(scope="session")
def sim_states(sim_cohort: "Cohort", sim_records: "RecordStore") -> "CohortStates":
    """Give all its patient states."""
    from ican_ml.inputs.assemble import assemble

    return assemble(sim_cohort, sim_records, sim_cohort.episodes, ["indication", "line"])


@pytest.fixture(scope="session")
def sim_fitted(
    sim_cohort: "Cohort", sim_schema: "InputSchema", sim_states: "CohortStates"
) -> "tuple[PatientTransformer, Applicability]":
    """Give a small network that was not trained, with nothing zero, so that every input moves its answers."""
    import numpy as np
    import torch

    from ican_ml.fold import indication_of
    from ican_ml.inputs.encode import encode
    from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
    from ican_ml.training.applicability import fit_embedding

    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = PatientTransformer(
            ModelConfig(width=16, heads=2, bottleneck_tokens=2, omics_layers=0, resistance=True), sim_schema
        ).eval()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if not parameter.any():
                    parameter.normal_(std=0.2 if ".heads." in name else 0.02)
            assert network.resistance is not None
            for buffer in network.resistance.state_dict().values():
                buffer.uniform_()
            for part in network.modules():
                if isinstance(part, torch.nn.Embedding) and part.padding_idx is not None:
                    part.weight[part.padding_idx] = 0
    subject = np.unique(sim_states.subject_id)
    train, tuning = (np.flatnonzero(np.isin(sim_states.subject_id, subject[start::2])) for start in (0, 1))
    applicability = fit_embedding(
        network,
        sim_schema,
        encode(sim_schema, sim_states.patients),
        train=train,
        tuning=tuning,
        subject=sim_states.subject_id,
        indication=indication_of(sim_cohort.episodes, sim_states),
        seed=0,
    )
    assert applicability is not None
    return network, applicability


@pytest.fixture(scope="session")
def sim_network(sim_fitted: "tuple[PatientTransformer, Applicability]") -> "PatientTransformer":
    """Give that network alone."""
    return sim_fitted[0]


@pytest.fixture(scope="session")
def sim_bundle(
    sim_fitted: "tuple[PatientTransformer, Applicability]",
    sim_schema: "InputSchema",
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Give the bundle of that network, with every file it may have; made once for all test processes. Only read it."""
    from filelock import FileLock

    from ican_ml.bundle.card import ModelCard
    from ican_ml.bundle.export import export_bundle
    from ican_ml.evaluation.conformal import Calibration

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sim_bundle"
    calibration = Calibration(
        task="response",
        slope=1.0,
        intercept=0.0,
        coverage=0.9,
        quantile=0.75,
        n_episodes=200,
        n_subjects=150,
        variance=(0.04, 0.01, 0.02),
    )
    card = ModelCard(name="small", cohort={"Subjects": 240}, subjects={}, inputs={}, performance={}, versions={})
    network, applicability = sim_fitted
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            export_bundle(
                network,
                sim_schema,
                folder,
                calibration={"response": calibration},
                applicability=applicability,
                card=card,
            )
    return folder


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give another simulated cohort: an unseen indication, unseen drugs, and no copy numbers. Never write into it."""
    import polars as pl

    from ican_ml.cohort.simulate import simulate

    out = tmp_path_factory.mktemp("cohort") / "elsewhere"
    simulate(out, subjects=160, seed=11)
    (out / "omics" / "cnv.h5ad").unlink()
    drug = pl.element().str.replace("^EGF-", "NEW-")
    episodes = pl.read_parquet(out / "episodes.parquet")
    episodes.with_columns(
        pl.col("indication").replace("MELANOMA", "UVEAL"),
        pl.col("treatment").list.eval(drug),
        (pl.col("os_time") / 100).alias("sensitivity"),
    ).write_parquet(out / "episodes.parquet")
    treatments = pl.read_parquet(out / "treatments.parquet")
    treatments.with_columns(pl.col("drug").str.replace("^EGF-", "NEW-")).write_parquet(out / "treatments.parquet")
    return out
