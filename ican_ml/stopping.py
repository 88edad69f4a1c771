"""A run that is asked to stop: it ends with what it has saved, and under SLURM goes back into the queue.

While the network trains, `ican_ml.training.progress` sees to it that the state is saved first. In any other stage the
run ends at once: a stage is either done or done again.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ican_ml.training.distributed import Ranks
from ican_ml.training.progress import SIGNALS, Stopped

_log = logging.getLogger(__name__)


@contextmanager
def stoppable(ranks: Ranks) -> Iterator[None]:
    """Within, SIGTERM and SIGUSR1 end the run: one line, exit code 128 + signal; the latter requeues a SLURM job."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, _stop) for number in SIGNALS}
    try:
        yield
    except Stopped as stopped:
        if not ranks.rank:
            _log.info("%s", stopped)
            if stopped.signal == signal.SIGUSR1:
                _requeue()
        raise SystemExit(128 + stopped.signal) from None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number, "between two fits")


def _requeue() -> None:
    """Put this SLURM job back into the queue, if it is one."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}") for part in ("JOB_ID", "TASK_ID"))
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if not job:
        return
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    _log.info("job %s %s", job, "requeued" if done.returncode == 0 else f"not requeued: {done.stderr.strip()}")
