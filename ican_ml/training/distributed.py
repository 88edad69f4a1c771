"""Several processes for one fit. Process 0 runs the pipeline; the others wait until it asks them to train with it.

Who starts them: ``srun`` of SLURM (a task each) or ``torchrun``, with the same command for all; or, on one machine,
process 0 itself. They speak over ``torch.distributed``: gloo between CPUs, NCCL between GPUs. What process 0 sends goes
from memory to memory; a memory-mapped file is opened anew by name, so the run's folder must be one that all can see.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import distributed

from ican_ml.training.config import TrainerConfig

_PIECE = 2**30  # bytes sent at once
_GRACE = 20.0  # seconds for an error to be raised where there is one
_MEETING = timedelta(minutes=10)
_PATIENCE = timedelta(days=7)  # while process 0 prepares and evaluates, the others wait


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Which process this is, of how many; ``local`` is its number on its node, ``waiting`` the group to wait in."""

    rank: int = 0
    size: int = 1
    local: int = 0
    waiting: Any = None


def started_outside() -> Ranks | None:
    """What SLURM's step or ``torchrun`` says of this process; None where neither has started several."""
    slurm = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    for names in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), slurm):
        if all(name in os.environ for name in names):
            rank, size, local = (int(os.environ[name]) for name in names)
            if size > 1:
                return Ranks(rank=rank, size=size, local=local)
    return None


@contextmanager
def together(config: TrainerConfig, fingerprint: str) -> Iterator[Ranks]:
    """Join the processes of a run, or start them; within, `broadcast` works.

    Parameters
    ----------
    fingerprint
        Of the configuration: the same in every process, or none may go on.

    Raises
    ------
    ValueError
        If the processes are not as many as the configuration says, theirs differ, or one of them ends early.
    """
    asked = config.devices * config.nodes
    found = started_outside()
    if found is not None and found.size != asked:
        raise ValueError(
            f"trainer.devices: expected devices x nodes to be the {found.size} processes that were started, got "
            f"{config.devices} x {config.nodes}"
        )
    if found is None and config.nodes > 1:
        raise ValueError(
            f"trainer.nodes: expected srun or torchrun to start {asked} processes, found this one alone; start them "
            "with srun"
        )
    if asked == 1:
        yield Ranks()
        return
    known = dict(os.environ)
    ranks = found or Ranks(size=asked)
    children: list[subprocess.Popen[bytes]] = []
    over = threading.Event()
    try:
        if found is None:
            children = _start_children(asked, config)
            threading.Thread(target=_end_without, args=(children, over), daemon=True).start()
        else:
            _find_address(ranks)
        ranks = meet(ranks, on_cpu=config.on_cpu)
        _agree(fingerprint, ranks)
        yield ranks
    except RuntimeError as error:
        if ranks.rank:
            raise SystemExit(1) from error  # process 0 says why
        if lost := _lost(children):
            raise ValueError(lost) from error
        raise
    finally:
        over.set()
        for child in children:
            assert child.stdin is not None
            child.stdin.close()  # it ends
            child.wait()
        if distributed.is_initialized():
            distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(known)


def meet(ranks: Ranks, *, on_cpu: bool) -> Ranks:
    """Join the group that the environment names, as ``torchrun`` does.

    Raises
    ------
    ValueError
        If the others are not there within ten minutes.
    """
    try:
        distributed.init_process_group("gloo" if on_cpu else "cpu:gloo,cuda:nccl", timeout=_MEETING)
    except RuntimeError as error:
        place, said = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", str(error).partition("\n")[0]
        raise ValueError(
            f"expected {ranks.size} processes to meet at {place} within {_MEETING}, got: {said}; set MASTER_ADDR to a "
            "name of the first node that all know, MASTER_PORT to a free port"
        ) from None
    return replace(ranks, waiting=distributed.new_group(backend="gloo", timeout=_PATIENCE))


def broadcast(thing: Any, ranks: Ranks) -> Any:
    """What process 0 has, in every process."""
    if ranks.size == 1:
        return thing
    data = np.frombuffer(_dumped(thing), np.uint8) if ranks.rank == 0 else np.empty(0, np.uint8)
    size = torch.tensor(len(data))
    distributed.broadcast(size, 0, group=ranks.waiting)
    tensor = torch.from_numpy(data.copy()) if ranks.rank == 0 else torch.empty(int(size), dtype=torch.uint8)
    for start in range(0, int(size), _PIECE):
        distributed.broadcast(tensor[start : start + _PIECE], 0, group=ranks.waiting)
    return thing if ranks.rank == 0 else pickle.loads(tensor.numpy().tobytes())


def gathered(thing: Any, size: int) -> list[Any]:
    """What each process has, in every process."""
    found: list[Any] = [thing] * size
    if size > 1:
        distributed.all_gather_object(found, thing)
    return found


class _Pickler(pickle.Pickler):
    def reducer_override(self, thing: Any) -> Any:
        if type(thing) is np.memmap and thing.filename is not None and os.path.exists(thing.filename):
            return np.memmap, (str(thing.filename), thing.dtype, "r", thing.offset, thing.shape)
        return NotImplemented


def _dumped(thing: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(thing)
    return buffer.getvalue()


def _start_children(size: int, config: TrainerConfig) -> list[subprocess.Popen[bytes]]:
    """The other processes, each with a pipe from this one: it ends when this one does, and they with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "GROUP_RANK": "0"}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0"}
    children = []
    for rank in range(1, size):
        command = [sys.executable, "-m", "ican_ml.training.follower", "cpu" if config.on_cpu else "gpu", str(rank)]
        environment = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        children.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE))
    return children


def _lost(children: list[subprocess.Popen[bytes]]) -> str:
    """Which of them have ended before their time, as a message; nothing where none has."""
    ended = [str(rank) for rank, child in enumerate(children, 1) if child.poll()]
    return f"expected {len(children) + 1} processes to train, lost process {', '.join(ended)}" if ended else ""


def _end_without(children: list[subprocess.Popen[bytes]], over: threading.Event) -> None:
    """End this process when it waits for one that is gone: for some waits there is no error, and no other way out."""
    while not over.wait(1.0):
        if (lost := _lost(children)) and not over.wait(_GRACE):
            print(f"{lost}; the same command goes on", file=sys.stderr, flush=True)
            os._exit(1)


def _find_address(ranks: Ranks) -> None:
    """Say as ``torchrun`` does what SLURM says otherwise: processes meet on its first node, at a port of the job's."""
    if "MASTER_ADDR" not in os.environ:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        os.environ["MASTER_ADDR"] = SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"])
    os.environ.setdefault("MASTER_PORT", str(15000 + int(os.environ.get("SLURM_JOB_ID", 0)) % 10000))
    os.environ.setdefault("GROUP_RANK", os.environ.get("SLURM_NODEID", "0"))
    os.environ |= {"RANK": str(ranks.rank), "WORLD_SIZE": str(ranks.size), "LOCAL_RANK": str(ranks.local)}


def _agree(fingerprint: str, ranks: Ranks) -> None:
    """One configuration in every process that has one."""
    known = gathered(hashlib.sha256(fingerprint.encode()).hexdigest(), ranks.size)
    other = [rank for rank, found in enumerate(known) if found not in (None, known[0])]
    if other:
        raise ValueError(
            f"expected the same configuration in all {ranks.size} processes, got another one in {other}; give every "
            "process the same command"
        )
