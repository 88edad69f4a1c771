"""What loggers need is missed before any work is done, in one line; where the key of an online run is found."""

from pathlib import Path

import pytest

from ican_ml.training import loggers
from ican_ml.training.config import LoggerConfig, LogMode
from ican_ml.training.event_file import EventFileLogger
from ican_ml.training.loggers import check_loggers, close_loggers, run_loggers

_ONLINE = LoggerConfig(wandb=True, mode=LogMode.online)
_NAMED = LoggerConfig(wandb=True, mode=LogMode.online, host="https://wandb.my-hospital.org:8080")


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_nothing_is_written_where_nothing_is_asked_for(tmp_path: Path) -> None:
    assert run_loggers(LoggerConfig(), tmp_path, "split") == []
    close_loggers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_online_run_needs_a_server_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    with pytest.raises(ValueError, match=r"^logger\.host: expected the URL .* set logger\.host or WANDB_BASE_URL"):
        check_loggers(_ONLINE)
    check_loggers(_NAMED)
    monkeypatch.setenv("WANDB_BASE_URL", "https://other.my-hospital.org")
    check_loggers(_ONLINE)


def test_an_online_run_needs_a_key_and_does_not_ask_for_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "https://other.my-hospital.org")
    with pytest.raises(
        ValueError, match=r"^logger\.mode: expected an API key for https://wandb\.my-hospital\.org:8080,"
    ):
        check_loggers(_NAMED)
    (tmp_path / "netrc").write_text(f"machine wandb.my-hospital.org:8080 login user password {'k' * 40}\n")
    check_loggers(_NAMED)
    with pytest.raises(ValueError, match=r"expected an API key for https://other\.my-hospital\.org, found none"):
        check_loggers(_ONLINE)
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", "token")
    check_loggers(_ONLINE)


def test_tensorboard_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    check_loggers(LoggerConfig())
    with pytest.raises(ValueError, match=r"^logger\.tensorboard: .* found none; python -m pip install tensorboard$"):
        check_loggers(LoggerConfig(tensorboard=True))


def test_a_run_that_goes_on_begins_another_event_file(tmp_path: Path) -> None:
    for step in (1, 2):
        logger = EventFileLogger(tmp_path / "split")
        logger.log_metrics({"tuning_loss": 0.5}, step)
        logger.finalize("success")
    names = sorted(path.name for path in (tmp_path / "split").iterdir())
    assert names == ["events.out.tfevents.0000", "events.out.tfevents.0001"]
