"""Runs under a real SLURM, which this script starts on this machine and ends: a sweep, two tasks, jobs stopped midway.

    python benchmarks/slurm.py                     every part (some twenty minutes on two cores)
    python benchmarks/slurm.py --parts sweep ddp   some of them
    python benchmarks/slurm.py --install           first install slurm-wlm and munge (as root, Debian)
    python benchmarks/slurm.py --check             exit code 1, and each thing that falls short by name

``sweep``: four trials by ``launcher=slurm``, each a job with a run of its own. ``ddp`` and ``nodes``: two tasks on one
node and on two against one process with the same global batch, loss by loss. ``requeue`` and ``signal``: a job that is
requeued midway, by ``scontrol requeue`` and by itself on SIGUSR1, against one left alone, bit for bit. Jobs are
``docs/train.sbatch``, as in docs/clusters.md. Writes ``benchmarks/results/slurm.json`` and, without names and paths of
the machine, what SLURM and the jobs said to ``slurm.log`` beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cluster import PACKAGES, Cluster, install, missing
from record import ROOT, Record

from ican_ml.reproduce import gaps

MOST_DIFFERENCE = 1e-4
RATES = ("1e-3", "2e-3", "3e-3", "4e-3")
COHORT = ("cohorts/simulated-240-7", "240", "7")
LOG = ROOT / "benchmarks" / "results" / "slurm.log"
_SCRIPT = "docs/train.sbatch"
_SMALL = ("--cpus-per-task=1", "--mem-per-cpu=0", "--time=60")
_RUN = ("experiment=sanity", "evaluation.baselines=false", "trainer.threads=1")
_LONG = (*_RUN, "training.epochs=24", "training.patience=24", "trainer.checkpoint_every=1")
_DROPOUTS = ("dropout", "token_dropout", "modality_dropout", "identity_dropout", "code_dropout")
_EXACT = (*_RUN, "training.epochs=4", *(f"model.{name}=0" for name in _DROPOUTS))
_SECONDS = 900.0


def main() -> None:
    """Measure what is not on file, print, check."""
    parts: dict[str, Callable[[Cluster], dict[str, Any]]] = {
        "sweep": sweep,
        "ddp": lambda cluster: distributed(cluster, "ddp", nodes=1, each=2),
        "nodes": lambda cluster: distributed(cluster, "nodes", nodes=2, each=1),
        "requeue": lambda cluster: stopped(cluster, "requeue"),
        "signal": lambda cluster: stopped(cluster, "signal"),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help="measure these only")
    parser.add_argument("--install", action="store_true", help="install SLURM and munge if they are missing")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each thing that falls short")
    arguments = parser.parse_args()
    record = Record("slurm", (*("ican_ml", "configs", "kernels"), "train.py", _SCRIPT), ("submitit", "hydra-core"))
    if wanted := [part for part in arguments.parts if part not in record.parts]:
        _need_slurm(arguments.install)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("benchmarks/slurm.py: terminated"))
        _simulate()
        with Cluster() as cluster:
            for part in wanted:
                print(f"{part} ...", file=sys.stderr)
                found = parts[part](cluster)
                _log(part, cluster.scrubbed(found.pop("evidence")))
                record.add(part, found)
    print(json.dumps({part: record.parts[part] for part in arguments.parts}, indent=1))
    short = [fault for part in arguments.parts for fault in faults(part, record.parts[part])]
    print("\n".join(short) or "nothing falls short")
    sys.exit(int(arguments.check and bool(short)))


def _need_slurm(may_install: bool) -> None:
    if missing() and may_install:
        install()
    if lacks := missing():
        sys.exit(
            f"benchmarks/slurm.py: expected SLURM and munge, found no {', '.join(lacks)}; as root on Debian: "
            f"apt-get install --no-install-recommends {' '.join(PACKAGES)}, or --install"
        )


def _simulate() -> None:
    """The cohort of every part, before several jobs want it at once."""
    path, subjects, seed = COHORT
    if not (ROOT / path).exists():
        command = [sys.executable, "-m", "ican_ml.cli", "simulate", path, "--subjects", subjects, "--seed", seed]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)


def faults(part: str, found: dict[str, Any]) -> list[str]:
    """What falls short, in words."""
    expected: dict[str, Any] = {"states": ["COMPLETED"] * len(found["states"])}
    if part == "sweep":
        expected |= {"launcher_exit": 0, "jobs": len(RATES), "runs_with_metrics": len(RATES), "rates": list(RATES)}
        expected |= {"different_metrics": len(RATES), "left_elsewhere": []}
    elif part in ("ddp", "nodes"):
        expected |= {"tasks": 2, "epochs": 4}
        difference = found["largest_difference_of_losses"]
        if difference is None or not difference <= MOST_DIFFERENCE:
            return [f"{part}: largest difference of losses: expected at most {MOST_DIFFERENCE:g}, got {difference}"]
    else:
        expected |= {"restarts": 1, "fit_was_done": False, "first_epochs": 1, "same_metrics": True}
        expected |= {"same_losses": True, "same_weights": True}
    return [
        f"{part}: {name.replace('_', ' ')}: expected {value}, got {found[name]}"
        for name, value in expected.items()
        if found[name] != value
    ]


def sweep(cluster: Cluster) -> dict[str, Any]:
    """Four trials by submitit, two at a time, from one command."""
    for run in (ROOT / "runs").glob("slurm-sweep*"):
        shutil.rmtree(run)
    before = set(ROOT.iterdir())
    command = [sys.executable, "train.py", "launcher=slurm", "name=slurm-sweep", *_RUN, "evaluation.replicates=20"]
    command += [f"training.learning_rate={','.join(RATES)}", "hydra.launcher.array_parallelism=2"]
    command += ["hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null", "hydra.launcher.timeout_min=60"]
    began = time.monotonic()
    with (cluster.folder / "launcher.out").open("wb") as said:
        launcher = subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stdout=said, stderr=said)
    try:
        code = launcher.wait(_SECONDS)
    finally:
        launcher.kill()
    jobs = cluster.jobs("slurm-sweep")
    states = [cluster.wait(job, 60) for job in jobs]
    runs = [ROOT / "runs" / f"slurm-sweep-{trial}" for trial in range(len(RATES))]
    done = [run for run in runs if (run / "metrics.json").exists()]
    rates = [json.loads((run / "private" / "config.json").read_text())["training"]["learning_rate"] for run in done]
    outputs = sorted((ROOT / "runs" / "slurm-sweep" / "private" / "submitit").rglob("*_0_log.*"))
    return {
        "launcher_exit": code,
        "seconds": round(time.monotonic() - began),
        "jobs": len(jobs),
        "states": states,
        "runs_with_metrics": len(done),
        "rates": [text for text in RATES if float(text) in rates],
        "different_metrics": len({(run / "metrics.json").read_text() for run in done}),
        "left_elsewhere": sorted(path.name for path in set(ROOT.iterdir()) - before),
        "evidence": _evidence(cluster, jobs, [*outputs, cluster.folder / "launcher.out"]),
    }


def distributed(cluster: Cluster, name: str, *, nodes: int, each: int) -> dict[str, Any]:
    """One run by two tasks against one by one process: every loss of every epoch."""
    alone, together = _fresh("slurm-alone"), _fresh(f"slurm-{name}")
    options = (f"--nodes={nodes}", f"--ntasks-per-node={each}")
    shape = ("trainer=ddp", f"trainer.devices={each}", f"trainer.nodes={nodes}")
    jobs = [
        cluster.submit(_SCRIPT, *_EXACT, "name=slurm-alone", options=_SMALL),
        cluster.submit(_SCRIPT, *_EXACT, *shape, f"name=slurm-{name}", options=(*_SMALL, *options)),
    ]
    states = [cluster.wait(job, _SECONDS) for job in jobs]
    expected, found = _losses(alone), _losses(together)
    pairs = [pair for rows in zip(expected, found, strict=False) for pair in zip(*rows, strict=True)]
    return {
        "states": states,
        "nodes": nodes,
        "tasks": int(cluster.about(jobs[1])["NumTasks"]),
        "epochs": min(len(expected), len(found)),
        "largest_difference_of_losses": max((abs(a - b) for a, b in pairs), default=None),
        "largest_difference_of_metrics": _largest_difference(alone, together),
        "evidence": _evidence(cluster, jobs),
    }


def stopped(cluster: Cluster, how: str) -> dict[str, Any]:
    """A job that runs twice under one number against one left alone."""
    whole, folder = ROOT / "runs" / "slurm-whole", _fresh(f"slurm-{how}")
    jobs = [cluster.submit(_SCRIPT, *_LONG, "name=slurm-whole", options=_SMALL)]
    jobs.append(cluster.submit(_SCRIPT, *_LONG, f"name=slurm-{how}", options=_SMALL))
    fit = folder / "private" / "split" / "fit"
    end = time.monotonic() + _SECONDS
    while len(_losses(folder)) < 5 and time.monotonic() < end and cluster.about(jobs[1])["JobState"] != "FAILED":
        time.sleep(0.1)
    stop = ("scontrol", "requeue") if how == "requeue" else ("scancel", "--signal=USR1")
    cluster.run(*stop, str(jobs[1]))
    epochs, fit_was_done = len(_losses(folder)), (fit / "done.json").exists()
    states = [cluster.wait(job, _SECONDS) for job in jobs]
    log = (folder / "log.txt").read_text()
    return {
        "states": states,
        "restarts": int(cluster.about(jobs[1])["Restarts"]),
        "epochs_before": epochs,
        "fit_was_done": fit_was_done,
        "starts": log.count("linear path"),
        "first_epochs": log.count("epoch 1/"),
        "same_losses": _losses(folder) == _losses(whole) != [],
        "same_metrics": _metrics(folder) == _metrics(whole) is not None,
        "same_weights": _same_weights(folder, whole),
        "evidence": _evidence(cluster, jobs),
    }


def _fresh(name: str) -> Path:
    folder = ROOT / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _losses(run: Path) -> list[list[float]]:
    """By epoch, its number and losses."""
    path = run / "logs" / "split.csv"
    return [[float(x) for x in row] for row in list(csv.reader(path.open()))[1:]] if path.exists() else []


def _metrics(run: Path) -> Any:
    path = run / "metrics.json"
    return json.loads(path.read_text()) if path.exists() else None


def _largest_difference(one: Path, other: Path) -> float | None:
    """Between the headline tables of two runs: estimates and both ends of their intervals."""
    if _metrics(one) is None or _metrics(other) is None:
        return None
    tables = [_metrics(run)["tasks"]["response"]["model"]["pooled"]["overall"]["metrics"] for run in (one, other)]
    return max(gaps(*tables).values())


def _same_weights(one: Path, other: Path) -> bool:
    paths = [run / "private" / "split" / "fit" / "network.pt" for run in (one, other)]
    if not all(path.exists() for path in paths):
        return False
    found, expected = (torch.load(path, weights_only=True) for path in paths)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def _evidence(cluster: Cluster, jobs: list[int], outputs: list[Path] | None = None) -> str:
    """What SLURM knows of these jobs, and what they said."""
    texts = [("slurmctld.log", cluster.events(*jobs))]
    shown = dict.fromkeys(cluster.run("scontrol", "show", "job", str(job)) for job in jobs)
    texts += [("scontrol show job", "\n\n".join(shown))]
    texts += [(f"output of job {job}", cluster.output(job)) for job in jobs if outputs is None]
    texts += [(path.name, path.read_text(errors="replace")) for path in outputs or []]
    return "\n\n".join(f"--- {title}\n{text.strip()}" for title, text in texts)


def _log(part: str, evidence: str) -> None:
    """Put one part's text into the log, in place of what it held of this part."""
    found = LOG.read_text() if LOG.exists() else ""
    sections = {text.partition("\n")[0]: text for text in found.split("=== ")[1:]}
    sections[part] = f"{part}\n{evidence}\n\n"
    LOG.write_text("".join(f"=== {text}" for text in sections.values()).rstrip() + "\n")


if __name__ == "__main__":
    main()
