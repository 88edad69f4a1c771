"""The validator's report, its command, and that neither size nor damage of a cohort stops it."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import meds
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ican_ml.cli import main
from ican_ml.cohort.cohort import CohortError, read_cohort
from ican_ml.cohort.validate import Report, validate

ROOT = Path(__file__).resolve().parents[2]


def _exit_code(*arguments: str) -> int:
    """Exit code of the command; a message in its place would be a mistake of the command's."""
    try:
        main(["validate", *arguments])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def _codes(report: Report) -> dict[str, str]:
    return {violation.code: violation.severity for violation in report.violations}


def test_a_healthy_cohort_passes_strictly(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate(healthy).violations == ()
    assert _exit_code(str(healthy), "--strict") == 0
    text = capsys.readouterr().out
    assert text.startswith("cohort simulated\n")
    assert text.endswith("\n0 errors, 0 warnings\n")
    assert str(healthy) not in text
    assert all(name in text for name in ("expression", "focused", "MELANOMA", "response", "static events"))


def test_summary_counts_what_is_there(healthy: Path) -> None:
    summary, cohort = validate(healthy).summary, read_cohort(healthy)
    assert summary["subjects"]["all"] == 60
    assert sum(line["episodes"] for line in summary["episodes"]) == len(cohort.episodes)
    known = [line["outcomes"]["response"] for line in summary["episodes"]]
    rate = sum(part["known"] * part["rate"] for part in known) / sum(part["known"] for part in known)
    assert rate == pytest.approx(float(cohort.episodes["response"].to_numpy().mean()), abs=1e-3)
    for line in summary["omics"]:
        modality = cohort.modalities[line["modality"]]
        assert (line["samples"], line["features"]) == (modality.matrix.n_rows, modality.matrix.n_features)
        measured = sum(int(modality.panels[name].sum()) for name in modality.panel)
        assert line["measured"] == pytest.approx(
            measured / modality.matrix.n_rows / modality.matrix.n_features, abs=1e-4
        )
        assert line["nonzero"] == pytest.approx(np.count_nonzero(modality.matrix.values) / measured, abs=1e-4)
    files = (healthy / "records" / "data").rglob("*.parquet")
    assert summary["records"]["events"] == sum(pq.ParquetFile(path).metadata.num_rows for path in files)


def test_warnings_fail_only_a_strict_run(healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "cohort"
    shutil.copytree(healthy, root)
    (root / "records" / "metadata" / "dataset.json").unlink()
    assert _exit_code(str(root)) == 0
    assert _exit_code(str(root), "--strict") == 1
    assert "warning missing-metadata: records/metadata/dataset.json\n  expected the file\n" in capsys.readouterr().out

    (root / "episodes.parquet").write_bytes(b"PAR1")
    assert _exit_code(str(root), "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["errors"], found["warnings"]) == (1, 1)
    assert [violation["code"] for violation in found["violations"]] == ["unreadable", "missing-metadata"]
    assert found["summary"]["records"]["subjects"] == 60


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    assert _codes(validate(tmp_path)) == {"not-a-cohort": "error"}
    assert _exit_code(str(tmp_path / "nothing")) == 1


def test_no_bytes_on_disk_end_in_a_traceback(healthy: Path, tmp_path: Path) -> None:
    root, draw = tmp_path / "cohort", random.Random(5)
    shutil.copytree(healthy, root)
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.name != "truth.parquet"):
        whole = path.read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], draw.randbytes(500)):
            path.write_bytes(damaged)
            report = validate(root)
            assert "unreadable" in _codes(report), path.name
            if not path.is_relative_to(root / "records" / "metadata"):
                with pytest.raises(CohortError):
                    read_cohort(root)
        path.write_bytes(whole)


def test_a_bare_meds_dataset_is_accepted(healthy: Path) -> None:
    report = validate(healthy / "records")
    assert report.violations == ()
    assert report.summary["records"]["subjects"] == 60


_PEAK = """
import sys
from pathlib import Path
from ican_ml.cohort.validate import validate

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

validate(sys.argv[1])
for folder in sys.argv[2:]:
    before = peak()
    print(len(validate(folder).violations), peak() - before)
"""


def _write_events(root: Path, n_rows: int) -> None:
    """Write records of 30 rows a subject, in row groups."""
    (root / "data").mkdir(parents=True)
    codes = pa.array([f"LABORATORY//A TEST WITH A LONG NAME//{i:04}" for i in range(500)])
    names = ("subject_id", "time", "code", "numeric_value")
    schema = pa.schema([meds.schema.DataSchema.schema().field(name) for name in names])
    with pq.ParquetWriter(root / "data" / "0.parquet", schema) as writer:
        for row in np.split(np.arange(n_rows), 10):
            values = pa.array((row % 97).astype(np.float32))
            time = pa.array(row * 1_000_000).cast(pa.timestamp("us"))
            part = pa.table([pa.array(row // 30), time, codes.take(pa.array(row % 500)), values], schema=schema)
            writer.write_table(part, row_group_size=100_000)


def _write_matrix(root: Path, n_samples: int, n_features: int) -> None:
    """Write a cohort with a dense matrix."""
    (root / "omics").mkdir(parents=True)
    (root / "cohort.json").write_text(json.dumps({"format": "ican-cohort/1", "name": "large"}))
    subject = np.arange(n_samples)
    episodes = {"subject_id": subject, "prediction_time": [None] * n_samples, "treatment": [["A"]] * n_samples}
    pq.write_table(pa.table(episodes), root / "episodes.parquet")
    obs = pd.DataFrame({"subject_id": subject}, index=subject.astype(str))
    var = pd.DataFrame({"gene": ""}, index=np.arange(n_features).astype(str))
    data = anndata.AnnData(obs=obs, var=var, uns={"ican": {"kind": "continuous"}})
    data.write_h5ad(root / "omics" / "large.h5ad")
    with h5py.File(root / "omics" / "large.h5ad", "r+") as stored:
        X = stored.create_dataset("X", (n_samples, n_features), np.float32, chunks=(64, n_features), fillvalue=1.0)
        X.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_memory_does_not_grow_with_the_cohort(healthy: Path, tmp_path: Path) -> None:
    _write_events(tmp_path / "records", 3_000_000)
    _write_matrix(tmp_path / "omics", 12_000, 2_500)
    command = [sys.executable, "-c", _PEAK, str(healthy), str(tmp_path / "records"), str(tmp_path / "omics")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (n_missing, events), (n_found, matrix) = (line.split() for line in done.stdout.splitlines())
    assert (n_missing, n_found) == ("3", "0"), "no metadata; nothing wrong with the matrix"
    whole_events = pq.read_table(tmp_path / "records" / "data" / "0.parquet").nbytes / 2**20
    assert float(events) < 85 < whole_events / 2
    assert float(matrix) < 50 < 12_000 * 2_500 * 4 / 2**20 / 2


@pytest.mark.parametrize(
    ("name", "warnings"), [("msk-chord", {"before-birth"}), ("tcga-survival", set()), ("gdsc", set()), ("loris", set())]
)
def test_real_cohorts_pass(cohorts: Path, name: str, warnings: set[str]) -> None:
    report = validate(cohorts / name)
    assert _codes(report) == dict.fromkeys(warnings, "warning")
    if name == "msk-chord":
        (violation,) = report.violations
        assert (violation.n_rows, violation.got) == (9, "9 earlier rows of 2 subjects")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("delphi_ukb_sim", {}),
        ("mimic_iv_demo", {"meds-version": "warning", "unknown-code": "warning"}),
        (
            "synthea27_meds_etl",
            {"meds-version": "warning", "missing-metadata": "warning", "unknown-code": "warning"},
        ),
        ("synthea27_omop", {"not-a-cohort": "error"}),
        ("aces_labels", {"not-a-cohort": "error"}),
    ],
)
def test_real_records_are_judged_by_what_they_are(cohorts: Path, name: str, found: dict[str, str]) -> None:
    report = validate(cohorts / "records" / name)
    assert _codes(report) == found
    if name == "mimic_iv_demo":
        assert any("none for 4,374 of 7,035 codes" in violation.got for violation in report.violations)
