"""A finished run again: the same figures, and what is said where they are not."""

import json
from pathlib import Path

import pytest

from ican_ml import pipeline
from ican_ml.cli import main
from ican_ml.run_folder import ORIGIN
from tests.test_pipeline import cohort, configured, quick

__all__ = ["cohort", "quick"]


@pytest.fixture
def finished(cohort: Path, tmp_path: Path, quick: None) -> Path:
    return pipeline.run(configured(cohort, tmp_path))


def test_the_same_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["reproduce", str(finished)])
    assert "largest difference 0;" in capsys.readouterr().out
    again = finished.with_name("tiny-again")
    assert (again / "metrics.json").read_bytes() == (finished / "metrics.json").read_bytes()
    with pytest.raises(SystemExit, match="expected no folder 'tiny-again'"):
        main(["reproduce", str(finished)])


def test_what_differs_is_said(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics, origin = finished / "metrics.json", finished / "private" / ORIGIN
    document = json.loads(metrics.read_text())
    first = next(iter(document["tasks"]["response"]["model"]["pooled"]["overall"]["metrics"].values()))
    first["estimate"] += 0.25
    metrics.write_text(json.dumps(document))
    origin.write_text(json.dumps(json.loads(origin.read_text()) | {"torch": "0.4"}))
    with pytest.raises(SystemExit, match=r"1 figures differ by more than 0\.001"):
        main(["reproduce", str(finished), "--tolerance", "1e-3"])
    printed = capsys.readouterr().out
    assert "torch: 0.4 then," in printed
    assert "tasks/response/model/pooled/overall/metrics/" in printed
    assert "largest difference 0.25;" in printed


def test_other_data_and_unfinished_runs_are_refused(finished: Path, tmp_path: Path) -> None:
    origin = finished / "private" / ORIGIN
    origin.write_text(json.dumps(json.loads(origin.read_text()) | {"data": "other"}))
    with pytest.raises(SystemExit, match="expected the data of the run"):
        main(["reproduce", str(finished)])
    (finished / "metrics.json").unlink()
    with pytest.raises(SystemExit, match="let it finish first"):
        main(["reproduce", str(finished)])
    with pytest.raises(SystemExit, match="expected the folder of a run"):
        main(["reproduce", str(tmp_path)])
