"""Records: training batches beside meds-torch-data, and 100 million events built, fitted and read in little memory.

    python benchmarks/records.py --check              all parts (about 15 minutes, 2 cores, 8 GB of disk)
    python benchmarks/records.py delphi mimic         of delphi, mimic, scale; these two need ICAN_COHORTS

delphi   ``records/delphi_ukb_sim``: batches of 256 patients with up to 64 events
mimic    ``records/mimic_iv_demo``: batches of 16 patients with up to 512 events
scale    10,000, 100,000 and 1,000,000 simulated subjects with 100 events each, read from Parquet into a store;
         batches of 256 patients with up to 64 events, summary columns of the 16 commonest codes

Each in a process of its own, on one thread, random patients at their latest event, batches as the network gets them:
tensors of events and of summary columns. Ours caps each code at a quarter of the room and normalises values;
meds-torch-data does neither and has no summary. It is installed, with its own requirements, into
``.venv/peers/meds-torch-data``, and used as its README says: MTD_preprocess, then the dataset's items collated.
``events alone`` are what the loader gives before they are tensors, and no summary. Anonymous memory is sampled from
the first file read to the last batch.

Writes ``benchmarks/results/records.json`` (see ``record.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from record import ROOT, Record, anonymous_memory
from tqdm import tqdm

SETS = {"delphi": ("delphi_ukb_sim", 64, 256), "mimic": ("mimic_iv_demo", 512, 16)}
PARTS = (*SETS, "scale")
BARS = {"delphi": 100, "mimic": 25}  # times as many samples a second as meds-torch-data
SUBJECTS, EVENTS, CODES, FILE_SUBJECTS = (10_000, 100_000, 1_000_000), 100, 2_000, 50_000
MOST_ANONYMOUS, MOST_SLOWER = 3.0, 0.20  # GB; from the fewest subjects to the most
_SECONDS = 5.0
_FOLDER = ROOT / "runs" / "records"
_PEER = ROOT / ".venv" / "peers" / "meds-torch-data"
_MEASURE_PEER = """
import json, sys, time
import numpy as np, torch
from meds_torchdata import MEDSPytorchDataset, MEDSTorchDataConfig
torch.set_num_threads(1)
folder, limit, size, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
data = MEDSPytorchDataset(MEDSTorchDataConfig(tensorized_cohort_dir=folder, max_seq_len=limit), split="train")
rng, done = np.random.default_rng(7), 0
started = time.perf_counter()
while time.perf_counter() - started < seconds:
    data.collate([data[int(i)] for i in rng.integers(0, len(data), size)])
    done += size
print(json.dumps(done / (time.perf_counter() - started)))
"""


def main() -> None:
    """Run, print, write, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all whose data is here")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        folder, stores, *numbers = arguments.measure
        print(json.dumps(measure(Path(folder), Path(stores), *map(int, numbers))))
        return
    if unknown := sorted(set(arguments.parts) - set(PARTS)):
        parser.error(f"expected parts among {', '.join(PARTS)}, got {', '.join(unknown)}")
    record = Record("records", ("ican_ml", "benchmarks/records.py"), ("polars", "pyarrow", "numba"))
    short = []
    for part in arguments.parts or (PARTS if os.environ.get("ICAN_COHORTS") else PARTS[-1:]):
        if part not in record.parts:
            shutil.rmtree(_FOLDER, ignore_errors=True)
            _FOLDER.mkdir(parents=True)
            record.add(part, _scale() if part == "scale" else _beside(*SETS[part]))
            shutil.rmtree(_FOLDER)
        print(f"\n{part}")
        print("\n".join(f"  {name:44}{value:16,.3f}" for name, value in record.parts[part].items()))
        short += _faults(part, record.parts[part])
    if arguments.check and short:
        sys.exit("\n".join(short))


def _beside(name: str, limit: int, size: int) -> dict[str, float]:
    source = Path(os.environ["ICAN_COHORTS"]) / "records" / name
    (_FOLDER / "cohort").mkdir()
    (_FOLDER / "cohort" / "records").symlink_to(source.resolve())
    ours = _in_own_process(_FOLDER / "cohort", limit, size, 512)
    theirs = _peer(source.resolve(), limit, size)
    ratio = ours["samples a second"] / theirs
    return ours | {"meds-torch-data, samples a second": theirs, "times as many": ratio}


def _peer(source: Path, limit: int, size: int) -> float:
    bin_ = _PEER / "bin"
    if not (bin_ / "MTD_preprocess").exists():
        subprocess.run([sys.executable, "-m", "venv", _PEER], check=True)
        subprocess.run([bin_ / "python", "-m", "pip", "install", "--quiet", "meds-torch-data==0.9.0"], check=True)
    environment = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "PYTHONPATH": ""}
    prepare = [bin_ / "MTD_preprocess", f"MEDS_dataset_dir={source}", f"output_dir={_FOLDER / 'peer'}"]
    subprocess.run(prepare, check=True, capture_output=True, env=environment, cwd=_FOLDER)
    asked = [bin_ / "python", "-c", _MEASURE_PEER, _FOLDER / "peer", str(limit), str(size), str(_SECONDS)]
    done = subprocess.run(asked, check=True, capture_output=True, text=True, env=environment, cwd=_FOLDER)
    return float(json.loads(done.stdout.splitlines()[-1]))


def _scale() -> dict[str, float]:
    found = {}
    for subjects in SUBJECTS:
        write_records(_FOLDER / str(subjects), subjects)
        measured = _in_own_process(_FOLDER / str(subjects), 64, 256, 16)
        found |= {f"{subjects:,} subjects: {name}": value for name, value in measured.items()}
        shutil.rmtree(_FOLDER / str(subjects))
        shutil.rmtree(_FOLDER / "stores")
    return found


def _in_own_process(cohort: Path, *numbers: int) -> dict[str, float]:
    (_FOLDER / "stores").mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--measure", str(cohort), str(_FOLDER / "stores"), *map(str, numbers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def write_records(cohort: Path, subjects: int) -> None:
    """MEDS files of subjects whose events fall on random days, half with values; frequent codes and rare ones."""
    rng = np.random.default_rng(7)
    weight = 1 / np.arange(1, CODES + 1)
    codes = np.array([f"CODE//{i:04}" for i in range(CODES)])
    data = cohort / "records" / "data" / "train"
    data.mkdir(parents=True)
    for start in tqdm(range(0, subjects, FILE_SUBJECTS), disable=None, unit="file", desc=f"{subjects:,} subjects"):
        n = min(FILE_SUBJECTS, subjects - start)
        day = np.sort(rng.integers(0, 7_000, (n, EVENTS)), axis=1).ravel()
        value = rng.standard_normal(n * EVENTS).astype(np.float32)
        frame = pl.DataFrame(
            {
                "subject_id": np.repeat(np.arange(start, start + n), EVENTS),
                "time": np.datetime64("2000-01-01", "us") + day * np.timedelta64(1, "D"),
                "code": codes[rng.choice(CODES, n * EVENTS, p=weight / weight.sum())],
                "numeric_value": np.where(rng.random(value.size) < 0.5, value, np.float32(np.nan)),
            }
        )
        frame.write_parquet(data / f"{start}.parquet")


def measure(cohort: Path, stores: Path, limit: int, size: int, summary_codes: int) -> dict[str, float]:
    """Build, fit, encode and read; seconds of each, samples a second, most anonymous memory."""
    from ican_ml.cohort.cohort import Cohort
    from ican_ml.inputs.assemble import assemble
    from ican_ml.inputs.encode import encode
    from ican_ml.inputs.fit import InputConfig, fit_schema
    from ican_ml.records.meds import read_records
    from ican_ml.records.recent import CodedRecords, RecordLoader
    from ican_ml.training.data import PatientData

    memory, found = _Memory(), {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = run()
        found[name] = time.perf_counter() - started
        return result

    store = timed("build (s)", lambda: read_records(cohort, stores))
    n = len(store.subject_id)
    whole = pl.DataFrame({"subject_id": store.subject_id}).with_columns(
        prediction_time=pl.lit(None, pl.Datetime("us")), treatment=pl.lit([], pl.List(pl.String))
    )
    of = Cohort(
        path=cohort, name="records", meta={}, modalities={}, episodes=whole, targets={}, classes={}, has_records=True
    )
    config = InputConfig(max_events=limit, max_per_code=limit // 4, covariates=[], summary_codes=summary_codes)
    schema = timed("fit (s)", lambda: fit_schema(of, store, whole, config, outcomes=[]))
    coded = timed("code (s)", lambda: CodedRecords.of(store, schema.vocabulary, stores))
    states = assemble(of, store, whole, [], lay_out=False)
    loader = RecordLoader(states.histories, coded, limit, limit // 4)
    encoded = timed("encode (s)", lambda: encode(schema, states.patients, loader=loader))
    data = PatientData(encoded=encoded, outcomes={}, rows=np.arange(n))

    def rate(batch: Callable[[Any], Any]) -> float:
        rng, samples = np.random.default_rng(7), 0
        batch(np.arange(min(n, 2)))
        started = time.perf_counter()
        while time.perf_counter() - started < _SECONDS:
            batch(rng.integers(0, n, size))
            samples += size
        return samples / (time.perf_counter() - started)

    found |= {"samples a second": rate(data.batch), "samples a second, events alone": rate(loader.batch)}
    found |= {"summary columns": encoded.summary.shape[1], "million events": len(store.code) / 1e6}
    return found | {"anonymous memory, most (GB)": memory.most()}


class _Memory:
    """Samples this process's anonymous memory, 20 times a second."""

    def __init__(self) -> None:
        self._most, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self._most = max(self._most, anonymous_memory())

    def most(self) -> float:
        self._done.set()
        self._thread.join()
        return max(self._most, anonymous_memory())


def _faults(part: str, found: dict[str, float]) -> list[str]:
    if part in SETS:
        ratio = found["times as many"]
        return [] if ratio >= BARS[part] else [f"{part}: {ratio:.0f} times as many samples, expected {BARS[part]}"]
    faults = []
    fewest, most = (found[f"{n:,} subjects: samples a second"] for n in (SUBJECTS[0], SUBJECTS[-1]))
    if most < (1 - MOST_SLOWER) * fewest:
        faults.append(f"scale: {most:,.0f} samples a second at {SUBJECTS[-1]:,} subjects, {fewest:,.0f} at the fewest")
    for n in SUBJECTS:
        memory = found[f"{n:,} subjects: anonymous memory, most (GB)"]
        if memory >= MOST_ANONYMOUS:
            faults.append(f"scale: {memory:.2f} GB of anonymous memory, expected less than {MOST_ANONYMOUS:g}")
    return faults


if __name__ == "__main__":
    main()
