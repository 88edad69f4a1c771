"""Losses as an event file that TensorBoard reads, from a name that tells of nobody.

TensorBoard's own writers put the host's name and the process into the name of the file. Its records and messages are
used here, its naming is not. A run that goes on after a kill begins another file: TensorBoard reads them in order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

_VERSION = "brain.Event:2"


class EventFileLogger(Logger):
    """Writes scalars to ``folder/events.out.tfevents.<number>``; needs the extra ``tensorboard``."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._records: Any = None

    @property
    def name(self) -> str:
        """Name of the fold."""
        return self._folder.name

    @property
    def version(self) -> str:
        """There is one."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write one value of each metric."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in metrics.items()]
        self._write(step=step or 0, summary=Summary(value=values))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Say nothing: the configuration is kept with the run."""

    @rank_zero_only
    def save(self) -> None:
        """Bring to disk what was written."""
        if self._records is not None:
            self._records.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file."""
        if self._records is not None:
            self._records.close()
            self._records = None

    def _write(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._records is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            number = len(list(self._folder.glob("events.out.tfevents.*")))
            path = self._folder / f"events.out.tfevents.{number:04d}"
            self._records = RecordWriter(path.open("xb"))
            self._records.write(Event(wall_time=time.time(), file_version=_VERSION).SerializeToString())
        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())
        self._records.flush()
