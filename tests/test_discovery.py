"""Discovery of a run: what it writes, and that no network sees the outcomes of the drugs that it is asked about."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ican_ml import pipeline
from ican_ml.cli import main
from ican_ml.config import Kind, OutcomeConfig, RunConfig, TaskConfig, read_config, write_config
from ican_ml.discovery import PAGE, TABLE, cross_fitted_inhibition, observations
from ican_ml.fold import Prepared
from ican_ml.model.patient_transformer import ModelConfig
from ican_ml.prepare import prepare
from ican_ml.run_folder import RunFolder
from ican_ml.targets.config import TargetsConfig
from ican_ml.training.outcomes import read_outcomes
from tests.test_pipeline import cohort, configured, quick

__all__ = ["cohort", "quick"]

SMALL = TargetsConfig(by="class", networks=2, permutations=10, patients=80, genes=3)


def test_a_run_writes_a_table_and_a_page_of_no_subject(cohort: Path, tmp_path: Path, quick: None) -> None:
    config = configured(cohort, tmp_path, discover=True, targets=SMALL)
    folder = pipeline.run(config)
    table = pl.read_parquet(folder / TABLE)
    lines = {"z", "inhibition", "inhibition_p", "attribution", "silenced", "lost", "restored", "stability"}
    assert lines < set(table.columns)
    assert table["inhibition"].is_not_null().any()
    assert table["attribution"].is_not_null().any()
    assert table.filter(pl.col("silenced").is_not_null())["gene"].n_unique() == SMALL.genes
    page = (folder / PAGE).read_text()
    for told in ("virtual inhibition", "What the panel is worth", "regimen and indication"):
        assert told in page
    subjects = pl.read_parquet(cohort / "episodes.parquet")["subject_id"].cast(pl.String).to_list()
    for path in (folder / PAGE, folder / "log.txt"):
        assert not [subject for subject in subjects if subject in path.read_text()]
    assert not {"subject_id"} & set(table.columns)
    fitted = sorted((folder / "private" / "targets").glob("*/fit/done.json"))
    assert len(fitted) == SMALL.networks
    written = [path.stat().st_mtime_ns for path in fitted]
    again = table.clone()
    main(["targets", str(folder), "--by", "class", "--permutations", "10"])  # the same, from the run's folder
    assert pl.read_parquet(folder / TABLE).equals(again)
    assert [path.stat().st_mtime_ns for path in fitted] == written  # nothing was fitted again


@pytest.mark.parametrize("kind", [Kind.regression, Kind.survival])
def test_other_outcomes_are_discovered_too(kind: Kind, cohort: Path, tmp_path: Path, quick: None) -> None:
    name = {Kind.regression: "sensitivity", Kind.survival: "os"}[kind]
    model = ModelConfig(deep=False, landmarks=64)
    config = configured(
        cohort,
        tmp_path,
        discover=True,
        targets=replace(SMALL, networks=2 if kind is Kind.regression else 0),
        task=TaskConfig(outcomes=[OutcomeConfig(name=name, kind=kind)]),
        model=model if kind is Kind.regression else ModelConfig(width=16, heads=2, bottleneck_tokens=2),
    )
    table = pl.read_parquet(pipeline.run(config) / TABLE)
    assert table["attribution"].is_not_null().any()
    assert ("inhibition" in table.columns) == (kind is Kind.regression)


def test_what_a_run_was_asked_to_do_is_kept(cohort: Path, tmp_path: Path) -> None:
    config = configured(cohort, tmp_path)
    (tmp_path / "tiny" / "private").mkdir(parents=True)
    write_config(config, tmp_path / "tiny" / "private")
    assert read_config(tmp_path / "tiny") == config
    (tmp_path / "tiny").rename(tmp_path / "moved")
    assert read_config(tmp_path / "moved") == replace(config, name="moved")
    with pytest.raises(ValueError, match="expected the folder of a run"):
        read_config(tmp_path)


def prepared_with(config: RunConfig, change: pl.Expr | None = None) -> Prepared:
    found = prepare(config)
    if change is None:
        return found
    episodes = found.episodes.with_columns(change.alias("response"))
    return replace(found, episodes=episodes, outcomes=read_outcomes(episodes, {"response": "binary"}))


def test_a_network_never_saw_the_drugs_it_is_asked_about(cohort: Path, tmp_path: Path) -> None:
    config = configured(cohort, tmp_path, targets=SMALL)
    prepared = prepared_with(config)
    observed = observations(config, prepared)
    found = cross_fitted_inhibition(config, prepared, observed, RunFolder(tmp_path / "a"), (0,))
    hidden = [name for name, network in found.network_of.items() if network == 0]
    held = pl.col("treatment").list.eval(pl.element().is_in(hidden)).list.any()
    turned = prepared_with(config, pl.when(held).then(~pl.col("response")).otherwise(pl.col("response")))
    changed = cross_fitted_inhibition(config, turned, observed, RunFolder(tmp_path / "b"), (0,))
    np.testing.assert_array_equal(changed.benefit[0], found.benefit[0])
    others = prepared_with(config, pl.when(held).then(pl.col("response")).otherwise(~pl.col("response")))
    moved = cross_fitted_inhibition(config, others, observed, RunFolder(tmp_path / "c"), (0,))
    assert not np.array_equal(moved.benefit[0], found.benefit[0])
    schema = json.loads(next((tmp_path / "a").glob("private/targets/*/fit/schema.json")).read_text())
    assert not set(hidden) & set(schema["drugs"])


def test_what_cannot_be_discovered_is_said_before_anything_is_fitted(cohort: Path, tmp_path: Path) -> None:
    config = configured(cohort, tmp_path, discover=True)
    config = replace(config, inputs=replace(config.inputs, treatments=False))
    with pytest.raises(ValueError, match="expected a drug with 20 labelled episodes"):
        pipeline.run(config)
    assert not list((tmp_path / "tiny" / "private").glob("*/fit"))
