"""Bundles that earlier versions exported still load and answer. None is made anew; a change of format adds one."""

from pathlib import Path

import pytest

from ican_ml.bundle.private import check_private
from ican_ml.serving.example import example_patient
from ican_ml.serving.predictor import Predictor

KEPT = sorted(path for path in (Path(__file__).parent / "fixtures").iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", KEPT, ids=lambda path: path.name)
def test_it_answers_as_it_did(folder: Path) -> None:
    predictor = Predictor(folder)  # proves the golden cases
    check_private(folder)
    patient = example_patient(predictor)
    asked: list[tuple[str, ...]] = [(drug,) for drug in predictor.schema.drugs] or [()]
    answer = predictor.predict(patient, asked, explain=True)
    assert len(answer.ranked) == len(asked)
    assert answer.drivers


def test_one_without_applicability_and_calibration_says_nothing_of_them() -> None:
    (folder,) = (path for path in KEPT if path.name == "2026-11-without-embedding")
    predictor = Predictor(folder)
    assert predictor.card == {}
    answer = predictor.predict({}, [()])
    assert answer.applicability is None
    assert answer.coverage == answer.ranked[0].sets == answer.ranked[0].interval == {}
