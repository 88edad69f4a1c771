"""No trial is lost, none run twice, and as many as asked for are finished."""

from pathlib import Path

import pytest
from optuna.trial import TrialState

from ican_ml.sweep.queue import RETRIES, Queue
from ican_ml.sweep.space import read_space
from ican_ml.sweep.storage import default_url, open_study, without_password
from ican_ml.sweep.summary import trial_line
from ican_ml.sweep.trial import Report, run_trial
from tests.sweep.conftest import Worker, go_stale, trial_of


def _finish(queue: Queue, number: int, value: float = 0.5) -> None:
    queue.study.tell(number, value)


def test_two_workers_share_exactly_as_many_as_asked_for(worker: Worker) -> None:
    first, second = worker(trials=3), worker(trials=3)
    claims = [*first.claim(1), *second.claim(1), *first.claim(5)]
    assert [claim.number for claim in claims] == [0, 1, 2]
    assert len({claim.params["x"] for claim in claims}) == 3, "workers with one seed draw different points"
    assert second.claim(1) == []
    assert second.counts().running == 3
    for claim in claims:
        _finish(first, claim.number)
    assert second.claim(1) == []
    assert second.counts().finished == 3


def test_the_seed_decides(worker: Worker, folder: Path) -> None:
    drawn = [claim.params for claim in worker().claim(2)]
    space = read_space({"x": "interval(0, 1)"}, [])
    other = Queue(folder, default_url(folder), "again", space, trials=4, seed=7, heartbeat=60, made={})
    assert [claim.params for claim in other.claim(2)] == drawn


def test_a_trial_whose_worker_was_killed_is_run_again_in_its_folder(worker: Worker, folder: Path) -> None:
    killed, other = worker(trials=2), worker(trials=2)
    (lost,) = killed.claim(1)
    killed.study._storage.set_trial_intermediate_value(1, 1, 0.7)
    (kept,) = other.claim(1)
    _finish(other, kept.number)
    assert other.claim(1) == [], "it may still live"
    go_stale(folder)
    (again,) = other.claim(1)
    assert (again.number, again.folder, again.params) == (2, lost.folder, lost.params)
    assert other.study.trials[2].intermediate_values == {1: 0.7}
    assert other.claim(1) == []
    assert "lost with its worker, and run again" in trial_line(other.study, lost.number)

    # What the first worker, asleep and not dead, now says does not count.
    assert run_trial(trial_of(folder, lost.number), lambda report: 0.1, root=folder) is None
    _finish(other, again.number)
    assert [trial.state for trial in other.study.trials] == [TrialState.FAIL, *[TrialState.COMPLETE] * 2]
    assert worker(trials=2).claim(1) == []


def test_a_worker_killed_while_it_claims_loses_nothing(worker: Worker, folder: Path) -> None:
    queue = worker(trials=1)
    queue.study._storage.create_new_trial(queue.study._study_id)  # asked, and no sign of life
    assert queue.claim(1) == []
    go_stale(folder)
    (again,) = queue.claim(1)
    assert again.folder == "0000"
    assert set(again.params) == {"x"}


def test_a_worker_killed_between_failing_and_asking_again_loses_nothing(worker: Worker) -> None:
    queue = worker(trials=1)
    (lost,) = queue.claim(1)
    queue.study.tell(lost.number, state=TrialState.FAIL)
    (again,) = queue.claim(1)
    assert again.params == lost.params


def test_parameters_that_kill_every_worker_are_given_up(worker: Worker, folder: Path) -> None:
    queue = worker(trials=1)
    drawn = []
    for _ in range(RETRIES + 2):
        drawn += [claim.params["x"] for claim in queue.claim(1)]
        go_stale(folder)
    assert len(set(drawn)) == 2
    assert drawn.index(drawn[-1]) == RETRIES + 1


def test_what_is_given_back_is_next(worker: Worker) -> None:
    queue = worker(trials=1)
    first = queue.claim(1)
    for _ in range(RETRIES + 2):  # a stop is no fault of the trial
        queue.release(first)
        again = queue.claim(1)
        assert [claim.params for claim in again] == [claim.params for claim in first]
        first = again


def test_a_failed_trial_is_replaced_and_not_run_again(worker: Worker, folder: Path, tmp_path: Path) -> None:
    queue = worker(trials=1)
    (bad,) = queue.claim(1)

    def objective(_: Report) -> float:
        raise RuntimeError("out of\nmemory")

    assert run_trial(trial_of(folder, bad.number), objective, root=tmp_path) is None
    assert "failed: RuntimeError: out of memory" in trial_line(queue.study, bad.number)
    assert "Traceback" in (tmp_path / "private" / "error.txt").read_text()
    (other,) = queue.claim(1)
    assert other.params != bad.params
    assert queue.counts().failed == 1


def test_losses_are_reported_and_bad_trials_stop(worker: Worker, folder: Path, tmp_path: Path) -> None:
    queue = worker(trials=6)

    def scripted(loss: float, seen: list[int]) -> float | None:
        (claim,) = queue.claim(1)

        def objective(report: Report) -> float:
            for epoch in (1, 2, 3):
                seen.append(epoch)
                report(epoch, loss / epoch, f"epoch {epoch}")
            return loss / 3

        (tmp_path / "private" / "split" / "fit").mkdir(parents=True, exist_ok=True)
        (tmp_path / "private" / "split" / "fit" / "last.ckpt").touch()
        value = run_trial(trial_of(folder, claim.number, startup=2, warmup=2), objective, root=tmp_path)
        assert not list(tmp_path.rglob("*.ckpt"))
        return value

    assert scripted(0.6, []) == pytest.approx(0.2)
    assert scripted(0.3, []) == pytest.approx(0.1)
    seen: list[int] = []
    assert scripted(0.9, seen) is None
    assert seen == [1, 2], "not before the warm-up"
    assert scripted(float("nan"), seen) is None
    trials = queue.study.trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert trials[0].intermediate_values == pytest.approx({1: 0.6, 2: 0.3, 3: 0.2})
    assert "pruned at epoch 2" in trial_line(queue.study, 2)
    assert queue.counts().finished == 4


def test_another_search_is_another_study(worker: Worker) -> None:
    worker()
    worker(experiment={"experiment": "demo", "groups": {"trainer": "gpu"}, "settings": {"cohort": {"path": "there"}}})
    with pytest.raises(
        ValueError, match=r"got others \(settings\.seed, space\.x\); name another: hydra\.sweeper\.study"
    ):
        worker(space={"x": "choice(1, 2)"}, experiment={"experiment": "demo", "settings": {"seed": 8}, "groups": {}})


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("no url", "expected the URL of a database"),
        ("oracle://user@nowhere/db", "pip install 'psycopg"),
        ("sqlite:////nowhere/at/all/study.db", "expected the database of a study, found none"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_told_in_one_line(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as told:
        open_study(without_password(url), "study")
    assert "\n" not in str(told.value)


def test_passwords_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICAN_STORAGE_PASSWORD", "")
    kept = without_password("postgresql+psycopg://me:hush@host/db")
    assert kept == "postgresql+psycopg://me@host/db"
    with pytest.raises(ValueError, match="driver") as told:
        open_study(kept, "study")
    assert "hush" not in str(told.value)
