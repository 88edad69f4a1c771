"""Studies in their database: opened by URL, with one clear message where that fails, and with no password in sight.

A password is taken out of the URL and kept in an environment variable, which the jobs of a launcher inherit: what is
written, logged or passed on holds none.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

PASSWORD = "ICAN_STORAGE_PASSWORD"
DATABASE = "study.db"
_GRACE = 3  # heartbeats that may be missed


def default_url(folder: Path) -> str:
    """SQLite in the study's own folder; absolute, because a job may start elsewhere."""
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str((folder / DATABASE).absolute())).render_as_string()


def without_password(url: str) -> str:
    """The URL as it may be written down; its password, if any, moves into the environment.

    Raises
    ------
    ValueError
        If it is no URL of a database.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(
            "hydra.sweeper.storage: expected the URL of a database, like postgresql://user@host/name or "
            "sqlite:////folder/study.db, got something else"
        ) from None
    if parsed.password is None:
        return url
    os.environ[PASSWORD] = str(parsed.password)
    return parsed._replace(password=None).render_as_string(hide_password=False)


def open_study(url: str, name: str, *, heartbeat: int = 60, create: bool = False) -> optuna.Study:
    """The study of this name in the database of this URL (without password).

    Raises
    ------
    ValueError
        If the database cannot be opened, or has no such study.
    """
    import optuna
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parsed = make_url(url)
    secret = os.environ.get(PASSWORD)
    if secret and parsed.username and parsed.password is None:
        parsed = parsed.set(password=secret)
    if parsed.get_backend_name() == "sqlite" and not create and not Path(parsed.database or "").exists():
        raise ValueError(f"expected the database of a study, found none at {parsed.database}")
    try:
        with quiet():
            storage = optuna.storages.RDBStorage(
                parsed.render_as_string(hide_password=False),
                heartbeat_interval=heartbeat,
                grace_period=_GRACE * heartbeat,
            )
        if create:
            return optuna.create_study(storage=storage, study_name=name, direction="minimize", load_if_exists=True)
        return optuna.load_study(storage=storage, study_name=name)
    except ImportError:
        raise ValueError(
            f"hydra.sweeper.storage: expected a database whose driver is installed, found none for "
            f"{parsed.drivername}; for PostgreSQL: pip install 'psycopg[binary]' and postgresql+psycopg://user@host/name"
        ) from None
    except KeyError:
        raise ValueError(f"expected a study of the storage, got {name!r}, which it does not have") from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        root: BaseException = error
        while (cause := root.__cause__ or root.__context__) is not None:
            root = cause
        said = " ".join(str(root).split())
        said = said.replace(secret, "***") if secret else said
        raise ValueError(f"hydra.sweeper.storage: expected a database that can be opened, got: {said}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's remarks: that a feature is new, or that heartbeats are given by hand."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
        yield


@contextmanager
def heartbeats(study: optuna.Study, numbers: Sequence[int], seconds: float) -> Iterator[None]:
    """Tell the storage every so many seconds, from a thread, that these trials are being worked on."""
    ids = [trial_id(study, number) for number in numbers]
    stop = threading.Event()
    thread = threading.Thread(target=_beat, args=(study, ids, seconds, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def beat(study: optuna.Study, number: int) -> None:
    """Tell it once."""
    study._storage.record_heartbeat(trial_id(study, number))  # type: ignore[attr-defined]


def trial_id(study: optuna.Study, number: int) -> int:
    """The storage's own number of a trial."""
    return study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)


def _beat(study: optuna.Study, ids: Sequence[int], seconds: float, stop: threading.Event) -> None:
    storage = study._storage
    while not stop.wait(seconds):
        for number in ids:
            try:
                storage.record_heartbeat(number)  # type: ignore[attr-defined]
            except Exception:  # a database away for a moment: the next beat may reach it
                continue
