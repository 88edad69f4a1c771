"""What leaves a run: the bundle, its card, whom it knows; and the same bits when it is exported again."""

from pathlib import Path

import polars as pl
import pytest

from ican_ml import pipeline
from ican_ml.bundle.private import check_private
from ican_ml.bundle.read import CARD_TEXT, open_bundle
from ican_ml.cli import main
from ican_ml.config import EvaluationConfig, SplitConfig
from tests.test_pipeline import cohort, configured, metrics_of

__all__ = ["cohort"]


@pytest.fixture(scope="module")
def whole(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with baselines, and enough tuning subjects for a threshold."""
    evaluation = EvaluationConfig(replicates=20, permutations=0)
    split = SplitConfig(tuning_fraction=0.2)
    return pipeline.run(configured(cohort, tmp_path_factory.mktemp("runs"), evaluation=evaluation, split=split))


def test_the_bundle_says_what_it_is_for_and_whom_it_knows(whole: Path, cohort: Path) -> None:
    bundle = open_bundle(whole / "bundle")
    assert bundle.applicability is not None
    assert bundle.applicability.modalities == ("mutation",)
    told, measured = bundle.card["performance"]["response"], metrics_of(whole)["tasks"]["response"]
    assert told["overall"] == measured["model"]["pooled"]["overall"]
    assert set(told["baselines"]) == {"ridge", "boosting", "oracle"}
    text = (whole / "bundle" / CARD_TEXT).read_text()
    assert "## Limits" in text
    check_private(whole / "bundle", pl.read_parquet(cohort / "episodes.parquet")["subject_id"].cast(str).to_list())


def test_a_run_is_exported_again_to_the_bit(whole: Path, tmp_path: Path) -> None:
    main(["export", str(whole), "--out", str(tmp_path / "again")])
    for path in (whole / "bundle").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
