"""The simulated cohort: frozen content, valid format, and a signal whose strength is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import anndata
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from meds import schema as meds

from ican_ml.cohort.simulate import SimulationSummary, Truth, oracle_auroc, read_truth, simulate
from ican_ml.cohort.simulate_world import DRUGS, INDICATIONS, SIMULATOR_VERSION, build_world

# Simulator version -> digest of 60 subjects, seed 7.
GOLDEN = {1: "13c8c4bfb31644ab0551b4febccec657894f327849907ab9b7d963b1c4d1ba19"}
MODALITIES = {"mutation": ("binary", 300), "cnv": ("continuous", 400), "expression": ("count", 2000)}


def _lines(path: Path) -> Iterator[str]:
    """The decoded content of a cohort, floats rounded, independent of how files are compressed."""
    for name in MODALITIES:
        data = anndata.read_h5ad(path / "omics" / f"{name}.h5ad")
        matrix = data.X
        yield f"{name} {data.shape} {data.uns['ican']['kind']}"
        yield data.obs.reset_index().astype(str).to_csv(index=False, lineterminator="\n")
        yield data.var.reset_index().astype(str).to_csv(index=False, lineterminator="\n")
        yield from (str(x.tolist()) for x in (matrix.indptr, matrix.indices, np.rint(matrix.data * 100).astype(int)))
    for file in sorted(path.rglob("*.parquet")):
        table = pl.read_parquet(file)
        yield f"{file.relative_to(path).as_posix()} {table.columns}"
        for column in table.iter_columns():
            yield str((column.round(4) if column.dtype.is_float() else column).to_list())
    description = json.loads((path / "cohort.json").read_text())
    yield json.dumps(description, sort_keys=True)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for line in _lines(path):
        digest.update(line.encode())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulated") / "small"
    simulate(path, subjects=60, seed=7)
    return path


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationSummary]:
    path = tmp_path_factory.mktemp("simulated") / "full"
    return path, simulate(path, subjects=3000, seed=7)


@pytest.fixture(scope="module")
def truth(full: tuple[Path, SimulationSummary]) -> Truth:
    return read_truth(full[0])


@pytest.fixture(scope="module")
def episodes(full: tuple[Path, SimulationSummary]) -> pl.DataFrame:
    return pl.read_parquet(full[0] / "episodes.parquet")


@pytest.fixture(scope="module")
def events(full: tuple[Path, SimulationSummary]) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(file) for file in sorted((full[0] / "records" / "data").glob("*/*.parquet"))])


def test_content_is_frozen(small: Path) -> None:
    assert _digest(small) == GOLDEN[SIMULATOR_VERSION], "a change of content is a new SIMULATOR_VERSION"


def test_same_seed_same_cohort_other_seed_another(small: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "again", subjects=60, seed=7)
    simulate(tmp_path / "other", subjects=60, seed=8)
    assert _digest(tmp_path / "again") == _digest(small)
    assert _digest(tmp_path / "other") != _digest(small)


def test_progress_counts_up_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    simulate(tmp_path / "cohort", subjects=40, progress=lambda what, done, total: seen.append((what, done, total)))
    assert [done for _, done, _ in seen] == list(range(len(seen)))
    assert seen[-1][1] == seen[-1][2]


def test_bad_arguments_are_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="subjects >= 40"):
        simulate(tmp_path / "few", subjects=3)
    with pytest.raises(ValueError, match="seed >= 0"):
        simulate(tmp_path / "negative", seed=-1)
    with pytest.raises(ValueError, match="new or empty folder"):
        simulate(small)


def test_signal_is_within_the_frozen_range(full: tuple[Path, SimulationSummary]) -> None:
    summary = full[1]
    assert 0.80 <= summary.oracle_auroc <= 0.86
    assert summary.oracle_auroc_omics_only <= summary.oracle_auroc - 0.03
    assert summary.oracle_auroc_record_only <= summary.oracle_auroc - 0.03
    assert 0.40 <= summary.response_rate <= 0.50
    assert 1.7 <= summary.episodes / summary.subjects <= 2.0
    assert json.loads((full[0] / "cohort.json").read_text())["figures"] == summary.table()


def test_truth_matches_the_episodes(truth: Truth, episodes: pl.DataFrame) -> None:
    regimens = episodes["treatment"].to_list()
    column = {drug: d for d, drug in enumerate(truth.drugs)}
    single = np.array([len(regimen) == 1 for regimen in regimens])
    given = np.array([truth.probability[i, column[regimen[0]]] for i, regimen in enumerate(regimens)])
    np.testing.assert_allclose(truth.response_probability[single], given[single], rtol=1e-12)
    assert 0.08 < 1.0 - single.mean() < 0.20
    response = episodes["response"].to_numpy()
    for low, high in ((0.0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.0)):
        rows = (truth.response_probability >= low) & (truth.response_probability < high)
        assert abs(response[rows].mean() - truth.response_probability[rows].mean()) < 0.04
    assert truth.targets == {drug.name: drug.targets for drug in DRUGS}
    assert all(1 <= len(genes) <= 2 for genes in truth.resistance.values())
    assert len(truth.prognostic) == 6


def test_oracle_auroc_agrees_with_its_definition() -> None:
    response, score = np.array([True, False, True, False]), np.array([0.9, 0.9, 0.4, 0.1])
    assert oracle_auroc(response, score) == pytest.approx((0.5 + 1.0 + 0.0 + 1.0) / 4)
    with pytest.raises(ValueError, match="both outcomes"):
        oracle_auroc(response, score, np.array([0, 2]))


@pytest.mark.parametrize("name", list(MODALITIES))
def test_omics_follow_the_format(full: tuple[Path, SimulationSummary], name: str) -> None:
    data = anndata.read_h5ad(full[0] / "omics" / f"{name}.h5ad")
    kind, width = MODALITIES[name]
    assert data.uns["ican"]["kind"] == kind
    assert data.n_vars == width
    assert data.X.dtype == np.float32
    assert data.X.has_sorted_indices
    assert not (data.X.data == 0).any()
    assert data.obs["subject_id"].dtype == np.int64
    assert data.obs_names.is_unique
    assert data.var_names.is_unique
    subjects = data.obs["subject_id"]
    assert subjects.nunique() < 3000 < len(subjects)
    assert set(data.var["gene"]) >= {gene for drug in DRUGS for gene in drug.targets}
    if kind == "count":
        assert (data.X.data == np.round(data.X.data)).all()
        dense = data.X[:1500].toarray()
        mean, variance = dense.mean(axis=0), dense.var(axis=0)
        assert np.median((variance / mean)[mean > 5]) > 2.0
    elif kind == "binary":
        assert set(np.unique(data.X.data)) == {1.0}
        for assay, rows in data.obs.groupby("panel", observed=True).indices.items():
            unmeasured = ~data.var[f"panel:{assay}"].to_numpy(dtype=bool)
            assert unmeasured.any()
            assert data.X[rows][:, unmeasured].nnz == 0
        assert data.obs["panel"].nunique() == 2
    else:
        assert data.X.data.min() >= -2.0
        assert data.X.data.max() <= 2.0
        assert (data.X.data < 0).any()
        dense = data.X[:200].toarray()
        assert (dense[:, 1:] == dense[:, :-1]).mean() > 0.9


def test_records_are_valid_meds(full: tuple[Path, SimulationSummary], events: pl.DataFrame) -> None:
    records = full[0] / "records"
    for file in (records / "data").glob("*/*.parquet"):
        table = pq.read_table(file)
        meds.DataSchema.validate(table)
        assert table.column_names[:4] == ["subject_id", "time", "code", "numeric_value"]
        part = pl.from_arrow(table)
        assert isinstance(part, pl.DataFrame)
        assert part["subject_id"].is_sorted()
        order = part.select(
            (pl.col("time").fill_null(pl.datetime(1000, 1, 1)).diff().over("subject_id").dt.total_microseconds() >= 0)
            .fill_null(True)
            .all()
        )
        assert order.item()
    codes = pq.read_table(records / meds.code_metadata_filepath)
    meds.CodeMetadataSchema.validate(codes)
    assert set(events["code"].unique()) == set(codes["code"].to_pylist())
    meds.SubjectSplitSchema.validate(pq.read_table(records / meds.subject_splits_filepath))
    meds.DatasetMetadataSchema.validate(json.loads((records / meds.dataset_metadata_filepath).read_text()))


def test_records_go_on_after_the_prediction_time(events: pl.DataFrame, episodes: pl.DataFrame) -> None:
    last = episodes.group_by("subject_id").agg(pl.col("prediction_time").max())
    later = events.join(last, on="subject_id").filter(pl.col("time") > pl.col("prediction_time"))
    assert {"LAB//ALB", "IMAGING//PROGRESSION", "MEDS_DEATH"} <= set(later["code"].unique())
    deaths = events.filter(pl.col("code") == "MEDS_DEATH")
    assert 0.4 < len(deaths) / 3000 < 0.95
    after = events.join(deaths.select("subject_id", died="time"), on="subject_id")
    assert after.filter(pl.col("time") > pl.col("died")).is_empty()
    inclusive = events.join(
        episodes.select("subject_id", time="prediction_time"), on=["subject_id", "time"], how="semi"
    )
    assert len(inclusive) > 1000


def test_one_laboratory_comes_in_two_units(events: pl.DataFrame) -> None:
    median = dict(
        events.filter(pl.col("code") == "LAB//HGB").group_by("unit").agg(pl.col("numeric_value").median()).iter_rows()
    )
    assert set(median) == {"g/L", "g/dL"}
    assert median["g/L"] == pytest.approx(10 * median["g/dL"], rel=0.05)


def test_episodes_are_consistent(episodes: pl.DataFrame) -> None:
    assert set(episodes["split"].unique()) == {"train", "held_out"}
    assert episodes.group_by("subject_id").agg(pl.col("split").n_unique())["split"].max() == 1
    assert 0.22 < (episodes["split"] == "held_out").mean() < 0.28  # type: ignore[operator]
    assert set(episodes["indication"].unique()) == set(INDICATIONS)
    assert episodes["line"].to_list().count(3) > 200
    assert episodes["os_time"].min() >= 1.0  # type: ignore[operator]
    assert 0.5 < episodes["os_event"].mean() < 0.95  # type: ignore[operator]
    used = {drug for regimen in episodes["treatment"].to_list() for drug in regimen}
    assert used == {drug.name for drug in DRUGS}


def test_second_samples_show_acquired_resistance_and_some_lie_in_the_future(
    full: tuple[Path, SimulationSummary], episodes: pl.DataFrame
) -> None:
    data = anndata.read_h5ad(full[0] / "omics" / "mutation.h5ad")
    obs = data.obs.assign(row=np.arange(data.n_obs), time=np.asarray(data.obs["sample_time"].astype(str)))
    pairs = obs[obs["subject_id"].duplicated(keep=False)].sort_values(["subject_id", "row"])
    first, second = pairs["row"].to_numpy()[::2], pairs["row"].to_numpy()[1::2]
    assert len(first) > 100
    gained = np.asarray((data.X[second] - data.X[first]).sum(axis=1)).ravel()
    assert set(np.unique(gained)) == {0.0, 1.0}
    assert gained.mean() > 0.2
    final = dict(episodes.group_by("subject_id").agg(pl.col("prediction_time").max()).iter_rows())
    future = [
        np.datetime64(obs["time"].iloc[row]) > np.datetime64(final[obs["subject_id"].iloc[row]]) for row in second
    ]
    assert 0.1 < np.mean(future) < 0.9


def test_world_does_not_depend_on_anything() -> None:
    first, second = build_world(), build_world()
    assert first.genes == second.genes
    np.testing.assert_array_equal(first.mutation_rate, second.mutation_rate)
    assert len(DRUGS) == 24
    assert len({drug.atc for drug in DRUGS}) == 8
