"""Reading a cohort: what is in it arrives as written, and everything wrong with it is said at once."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from ican_ml.cohort.cohort import CohortError, Modality, latest_samples, read_cohort
from ican_ml.encoding.csr import CSRBatch

FIRST = 900001


def edit_episodes(cohort: Path, *columns: pl.Expr, drop: str | None = None) -> None:
    path = cohort / "episodes.parquet"
    frame = pl.read_parquet(path).with_columns(*columns)
    (frame.drop(drop) if drop else frame).write_parquet(path)


def problems(cohort: Path, **options: Any) -> list[str]:
    with pytest.raises(CohortError) as caught:
        read_cohort(cohort, **options)
    header, *lines = str(caught.value).splitlines()
    assert header.startswith("cohort mini: ")
    assert not any("9000" in line or "sample-" in line for line in lines), "no ids of subjects or samples"
    return lines


def test_sparse_modality_stays_sparse_and_keeps_its_panels(mini: Path) -> None:
    mutation = read_cohort(mini).modalities["mutation"]
    assert (mutation.kind, mutation.explicit, mutation.matrix.nnz) == ("binary", False, 4)
    assert mutation.features == ("KRAS", "TP53", "CUSTOM")
    assert mutation.genes == ("KRAS", "TP53", "")
    assert mutation.panel.tolist() == ["large", "large", "small", "small"]
    assert {name: mask.tolist() for name, mask in mutation.panels.items()} == {
        "large": [True, True, True],
        "small": [True, True, False],
    }
    assert mutation.sample_time[:3].tolist() == [datetime(2020, 1, 1), datetime(2020, 6, 2), datetime(2020, 6, 1)]
    assert np.isnat(mutation.sample_time[3])


def test_dense_modality_tells_zero_from_not_measured(mini: Path) -> None:
    expression = read_cohort(mini).modalities["expression"]
    assert expression.explicit
    assert expression.matrix.indptr.tolist() == [0, 2, 3]
    assert expression.matrix.indices.tolist() == [0, 1, 1]
    assert expression.matrix.values.tolist() == [0.0, 2.5, -1.0]
    assert list(expression.panels) == ["all"]
    assert set(expression.panel) == {"all"}
    assert np.isnat(expression.sample_time).all()


def test_feature_ids_ascend_within_a_row(mini: Path, rewrite: Callable[..., None]) -> None:
    def reverse(parts: dict[str, Any]) -> None:
        parts["X"] = csr_matrix((np.ones(2, np.float32), [2, 0], [0, 2, 2, 2, 2]), shape=(4, 3))

    rewrite(mini, "mutation", reverse)
    assert read_cohort(mini).modalities["mutation"].matrix.indices.tolist() == [0, 2]


def test_episodes_targets_and_classes(mini: Path) -> None:
    cohort = read_cohort(mini)
    assert cohort.name == "mini"
    assert cohort.has_records
    assert cohort.episodes["treatment"].to_list()[2:4] == [[], []], "null means that no treatment is named"
    assert cohort.episodes["prediction_time"].null_count() == 1
    assert cohort.targets == {"NEW": ("KRAS", "TP53"), "OLD": (), "OTHER": ()}, "() = unknown, for absent drugs too"
    assert cohort.classes == {"NEW": "L01XX99"}


def test_one_task_and_some_modalities(mini: Path) -> None:
    cohort = read_cohort(mini, task="benefit", modalities=["expression"])
    assert len(cohort.episodes) == 7
    assert list(cohort.modalities) == ["expression"]
    assert read_cohort(mini, modalities=[]).modalities == {}


def test_some_features_of_a_modality(mini: Path) -> None:
    for modality in read_cohort(mini).modalities.values():
        part = modality.only([modality.features[-1], modality.features[0]])
        assert part.features == (modality.features[0], modality.features[-1]), "in the modality's own order"
        whole = modality.matrix.to_scipy().toarray()
        np.testing.assert_array_equal(part.matrix.to_scipy().toarray(), whole[:, [0, -1]])
        assert part.matrix.nnz == np.isin(modality.matrix.indices, [0, whole.shape[1] - 1]).sum(), "measured zeros stay"
        assert [measured.tolist() for measured in part.panels.values()] == [
            [bool(measured[0]), bool(measured[-1])] for measured in modality.panels.values()
        ]
        with pytest.raises(ValueError, match=rf"{modality.name}: expected features .*got \['nothing'\]"):
            modality.only(["nothing"])


def test_unknown_names_list_those_present(mini: Path) -> None:
    task, modality = problems(mini, task="benfit", modalities=["rna"])
    assert "'benfit'" in task
    assert "benefit, survival" in task
    assert "rna" in modality
    assert "expression, mutation" in modality


def test_a_cohort_needs_only_episodes(mini: Path) -> None:
    for path in [*mini.glob("omics/*"), *mini.glob("records/data/*"), mini / "treatments.parquet"]:
        path.unlink()
    (mini / "records" / "data").rmdir()
    (mini / "records").rmdir()
    cohort = read_cohort(mini)
    assert (cohort.modalities, cohort.has_records, cohort.classes) == ({}, False, {})


def test_prediction_times_may_all_be_unknown(mini: Path) -> None:
    line = pl.int_range(pl.len()).alias("line")
    edit_episodes(mini, pl.lit(None).alias("prediction_time"), pl.lit([]).alias("treatment"), line)
    assert read_cohort(mini).episodes.schema["prediction_time"] == pl.Datetime("us")


EPISODE_PROBLEMS = [
    ([pl.col("subject_id").cast(pl.String)], "subject_id int64, got String"),
    ([pl.when(pl.col("fold") > 0).then("subject_id").alias("subject_id")], "a subject_id in every row, got 3 null"),
    ([pl.col("prediction_time").dt.replace_time_zone("Europe/Helsinki")], "without a timezone, got timezone Europe"),
    ([pl.col("prediction_time").cast(pl.String)], "prediction_time timestamp[us], got String"),
    ([pl.col("treatment").list.first()], "treatment list<string>, got String"),
    ([pl.col("response").cast(pl.Int8)], "response bool, got Int8"),
    ([pl.col("os_event").cast(pl.Int8)], "os_event bool, got Int8"),
    ([pl.col("os_event").alias("pfs_event")], "pfs_time beside pfs_event"),
    ([pl.col("os_time") - 15], "os_time at least 0 days from prediction_time, got 1 other rows"),
    ([pl.lit(None, pl.Boolean).alias("os_event")], "os_time null where os_event is null, got 7 other rows"),
    ([pl.lit(float("nan")).alias("sensitivity")], "sensitivity finite, got 8 other rows"),
]


@pytest.mark.parametrize(("columns", "message"), EPISODE_PROBLEMS)
def test_episode_problems(mini: Path, columns: list[pl.Expr], message: str) -> None:
    edit_episodes(mini, *columns)
    (line,) = problems(mini)
    assert line.startswith("episodes.parquet: expected ")
    assert message in line
    assert "; " in line, "says how to fix it"


@pytest.mark.parametrize("column", ["subject_id", "prediction_time", "treatment"])
def test_required_episode_columns(mini: Path, column: str) -> None:
    edit_episodes(mini, drop=column)
    (line,) = problems(mini)
    assert f"got no {column};" in line


def _set(part: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(parts: dict[str, Any]) -> None:
        parts[part][key] = value

    return change


def _x(values: Any) -> Callable[[dict[str, Any]], None]:
    def change(parts: dict[str, Any]) -> None:
        parts["X"] = csr_matrix(np.array(values, np.float32)) if len(values) == 4 else np.array(values, np.float32)

    return change


OMICS_PROBLEMS = [
    ("mutation", lambda parts: parts.update(kind=None), 'uns["ican"]["kind"] to be one of count, binary'),
    ("mutation", lambda parts: parts.update(ids=["A", "B", "A"]), "unique feature ids, got 1 repeated"),
    ("mutation", _set("obs", "index", ["sample-1", "sample-1", "b", "c"]), "unique sample ids, got 1 repeated"),
    ("mutation", _set("obs", "subject_id", ["a", "b", "c", "d"]), 'obs["subject_id"] of type int64, got'),
    ("mutation", _set("obs", "sample_time", ["2020-01-01", "1.6.2020", "", ""]), "an ISO date, got '1.6.2020'"),
    ("mutation", _set("obs", "sample_time", ["2020-01-01T08:00+02:00", "", "", ""]), "a time without a timezone"),
    (
        "mutation",
        _set("obs", "panel", ["large", "huge", "small", ""]),
        "in var for every panel in obs, got none for ''",
    ),
    ("mutation", _set("var", "panel:small", [1, 1, 0]), "boolean panel columns, got panel:small"),
    ("mutation", _set("var", "panel:large", [False, True, True]), "that the sample's panel measures, got 1 others"),
    ("mutation", _x([[1, 0, 1], [0, np.nan, 0], [0, 0, 0], [1, 0, 0]]), "no NaN in a sparse X, got 1"),
    ("mutation", _x([[2, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]]), "0 and 1 only, got 1 others"),
    ("expression", _x([[np.inf, 1], [0, 1]]), "finite values, got 1 others"),
    ("expression", lambda parts: parts.update(kind="count"), "counts of at least 0, got 1 others"),
    ("expression", _set("obs", "subject_id", np.array([1, 2], np.int64)), "samples of subjects in episodes.parquet"),
]


@pytest.mark.parametrize(("name", "change", "message"), OMICS_PROBLEMS, ids=[p[2][:30] for p in OMICS_PROBLEMS])
def test_omics_problems(
    mini: Path, rewrite: Callable[..., None], name: str, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewrite(mini, name, change)
    lines = problems(mini)
    assert all(line.startswith(f"omics/{name}.h5ad: expected ") and "; " in line for line in lines)
    assert any(message in line for line in lines)


def test_repeated_entries_of_a_sparse_matrix(mini: Path, rewrite: Callable[..., None]) -> None:
    def repeat(parts: dict[str, Any]) -> None:
        parts["X"] = csr_matrix((np.ones(2, np.float32), [1, 1], [0, 2, 2, 2, 2]), shape=(4, 3))

    rewrite(mini, "mutation", repeat)
    (line,) = problems(mini)
    assert "one entry a feature, got 1 more; call X.sum_duplicates()" in line


def test_all_problems_come_at_once(mini: Path, rewrite: Callable[..., None]) -> None:
    (mini / "cohort.json").write_text(json.dumps({"format": "ican-cohort/9", "name": "mini"}))
    edit_episodes(mini, pl.col("response").cast(pl.String), drop="treatment")
    rewrite(mini, "mutation", lambda parts: parts.update(kind="binery"))
    (mini / "omics" / "expression.h5ad").write_text("not HDF5")
    pl.DataFrame({"drug": ["A", "A"], "targets": [["X"], ["Y"]]}).write_parquet(mini / "treatments.parquet")
    pl.DataFrame({"subject_id": [1], "code": ["A"]}).write_parquet(mini / "records" / "data" / "0.parquet")
    files = [line.split(":")[0] for line in problems(mini)]
    assert sorted(files) == [
        "cohort.json",
        "episodes.parquet",
        "episodes.parquet",
        "omics/expression.h5ad",
        "omics/mutation.h5ad",
        "records/data/0.parquet",
        "treatments.parquet",
    ]


def test_missing_folder_and_files(mini: Path) -> None:
    with pytest.raises(CohortError, match="expected a cohort folder, got no such folder"):
        read_cohort(mini / "nothing")
    (mini / "episodes.parquet").unlink()
    (line,) = problems(mini)
    assert line.startswith("episodes.parquet: expected the file, got none")


def _modality(subjects: list[int], times: list[int | None]) -> Modality:
    n = len(subjects)
    time = np.array([np.datetime64("NaT") if t is None else np.datetime64(t, "D") for t in times], "datetime64[us]")
    return Modality(
        name="m",
        kind="binary",
        matrix=CSRBatch.from_dense(np.ones((n, 1)), keep_zeros=False),
        explicit=False,
        features=("f",),
        genes=("",),
        subject_id=np.array(subjects, np.int64),
        sample_time=time,
        panels={"all": np.ones(1, bool)},
        panel=np.full(n, "all", dtype=object),
    )


def test_latest_sample_is_never_from_the_future(mini: Path) -> None:
    mutation = read_cohort(mini).modalities["mutation"]
    times = np.array(["2019-12-31", "2020-01-01", "2020-06-01", "2020-06-02", "NaT"], "datetime64[us]")
    assert latest_samples(mutation, np.full(5, FIRST), times).tolist() == [-1, 0, 0, 1, 1]


def test_latest_sample_without_a_time_is_usable_but_loses_to_a_dated_one() -> None:
    modality = _modality([1, 1, 2], [None, 5, None])
    days = np.array([4, 5, 0, 0], "datetime64[D]")
    assert latest_samples(modality, np.array([1, 1, 2, 3]), days).tolist() == [0, 1, 2, -1]


@given(
    samples=st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(0, 6)), max_size=12),
    queries=st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(0, 6)), max_size=8),
)
def test_latest_sample_matches_a_plain_search(
    samples: list[tuple[int, int | None]], queries: list[tuple[int, int | None]]
) -> None:
    def plain(subject: int, now: int | None) -> int:
        usable = [
            (-1 if time is None else time, row)
            for row, (owner, time) in enumerate(samples)
            if owner == subject and (time is None or now is None or time <= now)
        ]
        return max(usable)[1] if usable else -1

    modality = _modality([s for s, _ in samples], [t for _, t in samples])
    times = np.array(
        [np.datetime64("NaT") if t is None else np.datetime64(t, "D") for _, t in queries], "datetime64[us]"
    )
    found = latest_samples(modality, np.array([s for s, _ in queries], np.int64), times)
    assert found.tolist() == [plain(*query) for query in queries]


@pytest.mark.parametrize(
    ("name", "episodes", "modalities"),
    [
        ("msk-chord", 34038, ["fusion", "mutation", "signature"]),
        ("tcga-survival", 2429, ["cnv", "expression", "mutation"]),
        ("gdsc", 57471, ["cnv", "expression", "mutation"]),
        ("loris", 1479, ["signature"]),
    ],
)
def test_real_cohorts_are_read(cohorts: Path, name: str, episodes: int, modalities: list[str]) -> None:
    cohort = read_cohort(cohorts / name)
    assert len(cohort.episodes) == episodes
    assert list(cohort.modalities) == modalities
    subject = cohort.episodes["subject_id"].to_numpy()
    time = cohort.episodes["prediction_time"].to_numpy()
    for modality in cohort.modalities.values():
        row = latest_samples(modality, subject, time)
        assert (row >= 0).mean() > 0.99
        taken = modality.sample_time[row[row >= 0]]
        assert not (taken > time[row >= 0]).any()
