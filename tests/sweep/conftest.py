"""A study of one parameter in a folder, and workers that share it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from ican_ml.sweep.queue import Queue
from ican_ml.sweep.space import read_space
from ican_ml.sweep.storage import DATABASE, default_url
from ican_ml.sweep.trial import TrialConfig

Worker = Callable[..., Queue]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a database with Optuna's tables, which take a second to make, and no study."""
    from optuna.storages import RDBStorage

    folder = tmp_path_factory.mktemp("database")
    RDBStorage(default_url(folder))
    return folder / DATABASE


@pytest.fixture
def folder(tmp_path: Path, empty_database: Path) -> Path:
    folder = tmp_path / "runs" / "study"
    folder.mkdir(parents=True)
    shutil.copy(empty_database, folder)
    return folder


@pytest.fixture
def worker(folder: Path) -> Worker:
    """Give a worker of the study; each call another one."""

    def made(trials: int = 4, **settings: Any) -> Queue:
        space = read_space({"x": "interval(0, 1)"}, [])
        known = {"space": space.texts, "groups": [], "experiment": {"experiment": "demo", "groups": {}, "settings": {}}}
        known |= settings
        return Queue(folder, default_url(folder), "study", space, trials=trials, seed=7, heartbeat=60, made=known)

    return made


def trial_of(folder: Path, number: int, *, startup: int = 0, warmup: int = 0) -> TrialConfig:
    """What a job is told."""
    return TrialConfig(
        study="study",
        storage=default_url(folder),
        number=number,
        folder=f"{number:04d}",
        startup=startup,
        warmup=warmup,
    )


def go_stale(folder: Path) -> None:
    """As if the workers of all trials that are being run had been dead for long."""
    engine = create_engine(default_url(folder))
    with engine.begin() as connection:
        connection.execute(text("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00.000000'"))
    engine.dispose()
