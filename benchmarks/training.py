"""Training steps: against a plain PyTorch loop, batches sorted by length against drawn ones, two processes against one.

    python benchmarks/training.py            (about 10 minutes, 2 cores)
    python benchmarks/training.py --check    exit code 1 where Lightning costs more than 5%, or sorting does not pay

All on a simulated cohort with ``model=base``. Rounds of the two sides alternate, and medians are compared. A step is:
load, forward, backward, clip, AdamW, running average. Writes ``benchmarks/results/training.json`` (see ``record.py``).

Where there is a GPU, that is measured instead, with ``model=large`` (a minute and a half): patients a second and share
of the peak (MFU) in float32 and bfloat16, compiled and not; nothing is asked of these. Writes ``training_gpu.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from record import ROOT, Record, composed

from ican_ml.cohort.simulate import simulate
from ican_ml.fold import fit_fold
from ican_ml.prepare import prepare
from ican_ml.training.config import TrainerConfig, TrainingConfig
from ican_ml.training.data import PatientLoader
from ican_ml.training.deep import DeepFit, dismiss, train_deep
from ican_ml.training.distributed import Ranks, together
from ican_ml.training.module import PatientModule
from ican_ml.training.wide import cross_fit, fit_wide

SUBJECTS, EVENTS, ROUNDS, PATIENTS, BATCH = 1500, 256, 15, 768, 96
OVERHEAD = 0.05
_FOLDER = ROOT / "cohorts" / "training-benchmark"


def main() -> None:
    """Run, print, write, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    record = Record("training_gpu" if on_gpu else "training")
    on_cpu = {"overhead": overhead, "sorted by length": by_length, "processes": processes}
    fit = None
    for name, measure in ({"gpu": gpu} if on_gpu else on_cpu).items():
        if name not in record.parts:
            fit = fit or _prepared("large" if on_gpu else "base")
            record.add(name, measure(fit))
        print(f"{name}: {json.dumps(record.parts[name])}")
    short = [] if on_gpu else _faults(record.parts)
    if arguments.check and short:
        sys.exit("\n".join(short))


def overhead(fit: DeepFit) -> dict[str, float]:
    """Seconds of an epoch's steps under Lightning, with all that a fit does, and in a loop written out."""
    ours, plain = [], []
    for _ in range(ROUNDS):
        plain.append(_plain_epoch(fit))
        ours.append(1 / _rates(fit)["patients_per_second"] * len(fit.train.rows))
    return {
        "plain loop (s)": median(plain),
        "Lightning (s)": median(ours),
        "overhead": median(ours) / median(plain) - 1,
        "rounds": ROUNDS,
    }


def by_length(fit: DeepFit) -> dict[str, float]:
    """Patients a second, of batches whose patients are sorted among those of 8 batches, and of batches as drawn."""
    sorted_ = replace(fit, training=replace(fit.training, bucket=8))
    rates = [(_rates(fit), _rates(sorted_)) for _ in range(ROUNDS)]
    drawn, sorted_by_length = (median(each[i]["patients_per_second"] for each in rates) for i in (0, 1))
    padding = [_padding(each) for each in (fit, sorted_)]
    return {
        "drawn (patients/s)": drawn,
        "sorted (patients/s)": sorted_by_length,
        "speed-up": sorted_by_length / drawn,
        "drawn, padding": padding[0],
        "sorted, padding": padding[1],
    }


def processes(fit: DeepFit) -> dict[str, float]:
    """Patients a second at the same batch of all processes together."""
    threads = os.cpu_count() or 1
    found = {}
    for name, trainer in {
        "1 process, 1 thread": TrainerConfig(threads=1),
        f"1 process, {threads} threads": TrainerConfig(threads=threads),
        "2 processes, 1 thread each": TrainerConfig(threads=1, devices=2),
    }.items():
        with together(trainer, "") as ranks:
            rates = [_rates(replace(fit, trainer=trainer), ranks) for _ in range(3)]
            dismiss(ranks)
        found[f"{name} (patients/s)"] = median(each["patients_per_second"] for each in rates)
    return found


def gpu(fit: DeepFit) -> dict[str, Any]:
    """Patients a second and share of the peak, in the last of four epochs."""
    found: dict[str, Any] = {"card": torch.cuda.get_device_name()}
    for precision in ("32-true", "bf16-mixed"):
        for compiled in (False, True):
            trainer = TrainerConfig(accelerator="gpu", precision=precision, compile=compiled)
            epochs = replace(fit.training, epochs=4, patience=4)
            rates = _rates(replace(fit, trainer=trainer, training=epochs))
            name = f"{precision}, compiled" if compiled else precision
            found[f"{name} (patients/s)"] = rates["patients_per_second"]
            found[f"{name}, MFU"] = rates.get("model_flop_utilisation", float("nan"))
    return found


def _prepared(model: str) -> DeepFit:
    """A fit with its linear path, of patients whose records differ in length."""
    if not _FOLDER.exists():
        simulate(_FOLDER, subjects=SUBJECTS, seed=7)
    config = composed(
        "experiment=demo", f"model={model}", "cohort=mine", f"cohort.path={_FOLDER}", f"inputs.max_events={EVENTS}",
        "inputs.covariates=[indication]",
    )  # fmt: skip
    prepared = prepare(config)
    split = prepared.splits["split"]
    fold = fit_fold(config, prepared, split)
    train, tuning = fold.data(prepared.outcomes, split.train, split.tuning)
    train = replace(train, rows=train.rows[:PATIENTS])
    torch.manual_seed(7)
    from ican_ml.model.patient_transformer import PatientTransformer

    network = PatientTransformer(config.model, fold.schema)
    wide = fit_wide(network, train, tuning, strengths=[100.0])
    train = cross_fit(network, train, fold.states.subject_id, strength=wide.strength, seed=7)
    return DeepFit(
        network=network,
        train=train,
        tuning=replace(tuning, rows=tuning.rows[:16]),
        training=TrainingConfig(epochs=1, batch_size=BATCH),
        trainer=TrainerConfig(threads=1),
        folder=Path(),
        seed=7,
    )


class _Kept(Logger):
    """Keeps what a fit tells of its last epoch."""

    name, version = "kept", "0"

    def __init__(self) -> None:
        super().__init__()
        self.rates: dict[str, float] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Keep rates."""
        if "patients_per_second" in metrics:
            self.rates = dict(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Keep nothing."""


def _rates(fit: DeepFit, ranks: Ranks | None = None) -> dict[str, float]:
    kept = _Kept()
    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(fit.trainer.threads or torch.get_num_threads())
        train_deep(replace(fit, folder=Path(folder)), ranks or Ranks(), loggers=[kept])
    return kept.rates


def _plain_epoch(fit: DeepFit) -> float:
    """One epoch of the same steps, written out."""
    torch.set_num_threads(fit.trainer.threads)
    network = copy.deepcopy(fit.network).train()
    average = copy.deepcopy(network)
    loader = PatientLoader(fit.train, batch_size=BATCH, seed=fit.seed)
    module = PatientModule(network, fit.training, steps=len(loader))  # for its optimiser and loss alone
    made = module.configure_optimizers()
    optimiser, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    started = time.perf_counter()
    for batch in loader:
        optimiser.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), fit.training.gradient_clip)
        optimiser.step()
        scheduler.step()
        with torch.no_grad():
            for mean, now in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(now, 1 - fit.training.average)
        loss.item()
    return time.perf_counter() - started


def _padding(fit: DeepFit) -> float:
    """Share of padding among the events and features of an epoch's batches."""
    real = room = 0
    for batch in PatientLoader(fit.train, batch_size=BATCH, seed=fit.seed, bucket=fit.training.bucket):
        for name, values in batch.items():
            if (name.endswith("_tokens") and values.dim() == 2) or name == "event_code":
                real, room = real + int((values > 0).sum()), room + values.numel()
    return 1 - real / room


def _faults(parts: dict[str, Any]) -> list[str]:
    faults = []
    if (found := parts["overhead"]["overhead"]) > OVERHEAD:
        faults.append(f"overhead over a plain loop {found:.1%}, expected at most {OVERHEAD:.0%}")
    if (found := parts["sorted by length"]["speed-up"]) < 1:
        faults.append(f"sorted by length {found:.2f} times as fast, expected at least as fast")
    return faults


if __name__ == "__main__":
    main()
