"""Any two choices of configs/ go together: a pairwise cover of all groups composes, and what it asks for can be built.

Groups and choices are found on disk, so that a new file is covered from its first day. Where a combination is refused,
as a task without a survival outcome is by landmarks, the message names a setting, and with that it composes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import polars as pl
import pytest

from ican_ml.cohort.cohort import Cohort
from ican_ml.config import RunConfig
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.prepare import _splits
from ican_ml.training.loggers import close_loggers, run_loggers
from ican_ml.training.outcomes import read_outcomes
from tests.test_config import CONFIGS, NEEDED, composed

_APART = {"hydra", "launcher", "sweep"}  # how a run is started, not what it does
GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in sorted(CONFIGS.iterdir())
    if folder.is_dir() and folder.name not in _APART
}
Row = dict[str, str]


def pairs_of(row: Mapping[str, str]) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    return set(combinations(sorted(row.items()), 2))


def pairwise(groups: Mapping[str, Sequence[str]]) -> list[Row]:
    """Give rows, one choice a group, in which any two choices of different groups meet; greedy, the same every time."""
    missing = {
        pair
        for one, other in combinations(sorted(groups), 2)
        for first in groups[one]
        for second in groups[other]
        for pair in pairs_of({one: first, other: second})
    }
    rows = []
    while missing:
        row = dict(min(missing))
        for group in sorted(groups.keys() - row.keys(), key=lambda name: (-len(groups[name]), name)):
            row[group] = max(groups[group], key=lambda choice: len(pairs_of(row | {group: choice}) & missing))
        missing -= pairs_of(row)
        rows.append(row)
    return rows


ROWS = pairwise(GROUPS)


def composed_row(row: Row) -> RunConfig:
    """Compose a row; what is refused is asked for again with the setting that the message names."""
    choices = [f"{group}={choice}" for group, choice in row.items()]
    asked = choices + [needed for choice in choices for needed in NEEDED.get(choice, [])]
    for _ in range(3):
        try:
            return composed(*asked)
        except ValueError as error:
            said = str(error).partition("    full_key:")[0].strip()
            assert "\n" not in said
            remedy = re.search(r"set ([a-z_.]+=[\w.]+)", said)
            assert remedy is not None, f"{asked}: {said}"
            asked.append(remedy[1])
    raise AssertionError(f"{asked}: refused with every setting that was named")


@pytest.fixture(scope="module")
def configs() -> dict[str, RunConfig]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ICAN_COHORTS", "somewhere")
        return {" ".join(f"{group}={choice}" for group, choice in row.items()): composed_row(row) for row in ROWS}


@pytest.fixture(scope="module")
def episodes(sim_cohort: Cohort) -> pl.DataFrame:
    """Give the simulated episodes with folds, and a time until the next line of therapy."""
    next_line = [pl.col(f"os_{part}").alias(f"tnt_{part}") for part in ("time", "event")]
    return sim_cohort.episodes.with_columns((pl.col("subject_id") % 3).alias("fold"), *next_line)


@pytest.mark.parametrize("groups", [GROUPS, {"a": ["1", "2", "3"], "b": ["1"], "c": ["1", "2"], "d": ["1", "2", "3"]}])
def test_any_two_choices_meet(groups: dict[str, list[str]]) -> None:
    rows = pairwise(groups)
    assert rows == pairwise(groups)
    assert all(row.keys() == groups.keys() for row in rows)
    met = set().union(*map(pairs_of, rows))
    assert len(met) == sum(len(groups[one]) * len(groups[other]) for one, other in combinations(groups, 2))
    widest = sorted(map(len, groups.values()))[-2:]
    assert len(rows) <= 2 * widest[0] * widest[1]


def test_every_row_composes_to_what_its_choices_say(configs: dict[str, RunConfig]) -> None:
    assert {"cohort", "task", "split", "model", "training", "trainer", "logger", "experiment"} <= GROUPS.keys()
    for row, config in zip(ROWS, configs.values(), strict=True):
        assert config.split.method.value == row["split"]
        assert config.logger.wandb == (row["logger"] == "wandb")
        assert config.model.deep == (row["model"] not in ("wide", "kernel"))
        assert config.task.outcomes


def test_every_network_can_be_built(configs: dict[str, RunConfig], sim_schema: InputSchema) -> None:
    of_kind = {task.kind: task for task in sim_schema.tasks}
    built = set()
    for choices, config in configs.items():
        tasks = [replace(of_kind[outcome.kind.value], name=outcome.name) for outcome in config.task.outcomes]
        key = json.dumps([asdict(config.model), [(task.name, task.kind) for task in tasks]])
        if key in built:
            continue
        built.add(key)
        network = PatientTransformer(config.model, replace(sim_schema, tasks=tasks))
        assert [task.name for task in network.tasks] == [task.name for task in tasks], choices
        assert (network.trees is not None) == (config.model.trees > 0), choices
        assert (network.kernel is not None) == (config.model.landmarks > 0), choices
        assert network.n_members in (1, config.model.members), choices
    assert len(built) >= len(GROUPS["model"])


def test_every_split_holds_somebody_out(configs: dict[str, RunConfig], episodes: pl.DataFrame) -> None:
    drug = episodes["treatment"].explode().mode().sort()[0]
    done = {}
    for choices, config in configs.items():
        split = replace(config.split, value=drug) if config.split.method.value == "treatment" else config.split
        key = json.dumps(asdict(split), default=str)
        if key not in done:
            done[key] = _splits(replace(config, split=split), episodes)
        for part in done[key].values():
            assert min(map(len, (part.train, part.tuning, part.held_out))) > 0, choices
            assert not set(part.train) & set(part.held_out), choices
    assert len(done) >= len(GROUPS["split"])


def test_every_outcome_is_read(configs: dict[str, RunConfig], episodes: pl.DataFrame) -> None:
    for choices, config in configs.items():
        found = read_outcomes(episodes, {outcome.name: outcome.kind.value for outcome in config.task.outcomes})
        assert all(outcome.labelled.any() for outcome in found.values()), choices


def test_every_logger_takes_a_loss(configs: dict[str, RunConfig], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    found = {json.dumps(asdict(config.logger), default=str): config.logger for config in configs.values()}
    assert len(found) == len(GROUPS["logger"])
    for number, config in enumerate(found.values()):
        root = tmp_path / str(number)
        for logger in run_loggers(config, root, "split"):
            logger.log_metrics({"tuning_loss": 0.5}, 1)
            logger.finalize("success")
        close_loggers(root)
        assert any(root.glob("logs/**/*.wandb")) == config.wandb
        assert any(root.glob("logs/**/*tfevents*")) == config.tensorboard
