"""Matrices of cohort and biobank size: one epoch of training in little memory, and statistics of what does not fit.

    python benchmarks/scale.py --check               both parts (about 6 minutes, 2 cores, 2 GB of disk)
    python benchmarks/scale.py training              of training, statistics

training    15,000 samples x 20,000 genes of counts, 5% of them stored: read, fit statistics, encode once, linear path,
            one epoch with the demo's model. ``--check``: less than 4 GB of resident memory at its peak, and the loader,
            which gathers rows and pads, takes less than 5% of a step.
statistics  200,000 samples x 20,000 genes from an h5ad file in pieces. ``--check``: less than 3 GB of anonymous memory
            at any time, and the very sums that the writer counted.

Each part is measured in a process of its own. Writes ``benchmarks/results/scale.json`` (see ``record.py``).
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import anndata
import h5py
import numpy as np
import polars as pl
import scipy.sparse
from matrices import multinomial
from record import ROOT, Record, anonymous_memory, composed
from tqdm import tqdm

from ican_ml.encoding.feature_stats import feature_stats
from ican_ml.encoding.stored import open_csr

SAMPLES, MANY, GENES, CHUNK = 15_000, 200_000, 20_000, 500
MOLECULES = 1_205  # a sample, on average: about 1,000 genes
PARTS = ("training", "statistics")
MOST_RESIDENT, MOST_ANONYMOUS, MOST_LOADING = 4.0, 3.0, 0.05  # GB, GB, share of a step
_FOLDER = ROOT / "runs" / "scale"


def main() -> None:
    """Run, print, write, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: both")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
    parser.add_argument("--measure", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(train() if arguments.measure == "training" else stream()))
        return
    if unknown := sorted(set(arguments.parts) - set(PARTS)):
        parser.error(f"expected parts among {', '.join(PARTS)}, got {', '.join(unknown)}")
    record = Record("scale", ("ican_ml", "configs", "benchmarks/scale.py", "benchmarks/matrices.py"))
    short = []
    for part in arguments.parts or PARTS:
        if part not in record.parts:
            shutil.rmtree(_FOLDER, ignore_errors=True)
            _FOLDER.mkdir(parents=True)
            write_cohort() if part == "training" else write_matrix()
            command = [sys.executable, __file__, "--measure", part]
            done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            record.add(part, json.loads(done.stdout.splitlines()[-1]))
            shutil.rmtree(_FOLDER)
        print(f"\n{part}")
        print("\n".join(f"  {name:44}{value:14,.3f}" for name, value in record.parts[part].items()))
        short += _faults(part, record.parts[part])
    if arguments.check and short:
        sys.exit("\n".join(short))


def write_cohort() -> None:
    """A cohort whose response follows from one gene's count and the drug; what it says is of no interest here."""
    rng = np.random.default_rng(7)
    counts = scipy.sparse.vstack(list(_pieces(SAMPLES)), format="csr")
    subject = np.arange(SAMPLES)
    obs = {"subject_id": subject, "sample_time": np.full(SAMPLES, "")}
    genes = [f"G{i}" for i in range(GENES)]
    data = anndata.AnnData(counts, obs=_frame(obs, "S"), var=_frame({"gene": genes}, "F"))
    data.uns["ican"] = {"kind": "count"}
    cohort = _FOLDER / "cohort"
    (cohort / "omics").mkdir(parents=True)
    data.write_h5ad(cohort / "omics" / "expression.h5ad")
    drug = rng.integers(0, 4, SAMPLES)
    marker = counts[:, [int(counts.sum(axis=0).argmax())]].toarray().ravel()
    logit = np.where(drug < 2, 1.0, -1.0) * (marker > np.median(marker))
    episodes = {
        "subject_id": subject,
        "prediction_time": pl.Series([None] * SAMPLES, dtype=pl.Datetime("us")),
        "treatment": [[f"D{d}"] for d in drug],
        "indication": [f"C{c}" for c in rng.integers(0, 5, SAMPLES)],
        "response": rng.random(SAMPLES) < 1 / (1 + np.exp(-logit)),
    }
    pl.DataFrame(episodes).write_parquet(cohort / "episodes.parquet")
    about = {"format": "ican-cohort/1", "name": "scale", "description": "Counts for a benchmark", "license": "none"}
    (cohort / "cohort.json").write_text(json.dumps(about | {"source_timezone": "UTC"}))


def write_matrix() -> None:
    """An h5ad file as AnnData writes one, in pieces, and the sums of its genes."""
    sums = np.zeros(GENES)
    with h5py.File(_FOLDER / "matrix.h5ad", "w") as file:
        stored = file.create_group("X")
        stored.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (MANY, GENES)})
        for name, dtype in (("data", np.float32), ("indices", np.int32)):
            stored.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(1 << 18,))
        pointers = [np.zeros(1, np.int64)]
        for piece in _pieces(MANY):
            start, stop = pointers[-1][-1], pointers[-1][-1] + piece.nnz
            for name, values in (("data", piece.data), ("indices", piece.indices)):
                stored[name].resize((stop,))
                stored[name][start:stop] = values
            pointers.append(piece.indptr[1:] + start)
            sums += piece.sum(axis=0).A1
        stored["indptr"] = np.concatenate(pointers)
    np.save(_FOLDER / "sums.npy", sums)


def _pieces(n_samples: int) -> Iterator[Any]:
    rng = np.random.default_rng(7)
    popularity = np.cumsum(np.exp(1.5 * rng.standard_normal(GENES)))
    for _ in tqdm(range(0, n_samples, CHUNK), disable=None, desc="writing", unit="piece"):
        totals = (MOLECULES * np.exp(0.35 * rng.standard_normal(CHUNK) - 0.06)).astype(np.int64)
        lengths, indices, values = multinomial(rng, totals, popularity)
        pointers = np.append(0, np.cumsum(lengths))
        yield scipy.sparse.csr_matrix((values, indices, pointers), shape=(CHUNK, GENES))


def _frame(columns: dict[str, Any], prefix: str) -> Any:
    import pandas as pd

    size = len(next(iter(columns.values())))
    return pd.DataFrame(columns, index=[f"{prefix}{i}" for i in range(size)])


def train() -> dict[str, float]:
    """Seconds and peak memory of every step from the cohort on disk to the end of the first epoch."""
    from ican_ml.fold import encode_fold, fit_schema
    from ican_ml.prepare import prepare
    from ican_ml.training import data, loop

    cohort = _FOLDER / "cohort"
    overrides = ["cohort=mine", f"cohort.path={cohort}", "split=hash", "inputs.covariates=[indication]"]
    config = composed("experiment=demo", *overrides, "training.epochs=1")
    found: dict[str, float] = {}
    clock = _Clock(found)
    prepared = prepare(config)
    clock("read")
    split = prepared.splits["split"]
    outcomes = [(outcome.name, outcome.kind.value) for outcome in config.task.outcomes]
    schema = fit_schema(prepared.cohort, None, prepared.episodes[split.train], config.inputs, outcomes=outcomes)
    clock("statistics")
    fold = encode_fold(config, prepared, schema)
    clock("encoding of all samples")
    parts = fold.data(prepared.outcomes, split.train, split.tuning)
    loading = _Loading(data.PatientLoader)
    loop.fit(
        fold.schema,
        *parts,
        subject=fold.states.subject_id,
        model=config.model,
        training=config.training,
        trainer=config.trainer,
        folder=_FOLDER / "fit",
        seed=config.seed,
    )
    found["linear path (s)"] = loading.started - clock.last
    clock.last = loading.started
    clock("epoch and its validation")
    matrix = prepared.cohort.modalities["expression"].matrix
    found["entries (millions)"] = matrix.nnz / 1e6
    found["step (ms)"] = 1e3 * (loading.loading + loading.training) / loading.steps
    found["loading in a step (ms)"] = 1e3 * loading.loading / loading.steps
    found["loading, share of a step"] = loading.loading / (loading.loading + loading.training)
    return found


class _Clock:
    """Notes seconds since the last call, and the peak of resident memory so far."""

    def __init__(self, found: dict[str, float]) -> None:
        self.found, self.last = found, time.perf_counter()

    def __call__(self, step: str) -> None:
        now = time.perf_counter()
        self.found[f"{step} (s)"] = now - self.last
        self.found[f"{step}, peak so far (GB)"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self.last = now


class _Loading:
    """Listens to the training loader: time inside it, and between its batches."""

    def __init__(self, loader: Any) -> None:
        self.started = self.loading = self.training = 0.0
        self.steps = 0
        batches = loader.__iter__

        def timed(these: Any) -> Iterator[Any]:
            if these.seed is None:  # patients to predict
                yield from batches(these)
                return
            last = time.perf_counter()
            self.started = self.started or last
            for batch in batches(these):
                now = time.perf_counter()
                self.loading += now - last
                yield batch
                last = time.perf_counter()
                self.training += last - now
                self.steps += 1

        loader.__iter__ = timed


def stream() -> dict[str, float]:
    """Seconds, anonymous memory and correctness of the statistics of a matrix on disk."""
    most = before = anonymous_memory()
    started = time.perf_counter()
    with open_csr(_FOLDER / "matrix.h5ad") as stored:

        def pieces() -> Iterator[Any]:
            nonlocal most
            for piece in stored.pieces():
                yield piece
                most = max(most, anonymous_memory())

        total = feature_stats(pieces())
        entries, size = stored.nnz, 8 * stored.nnz
    seconds = time.perf_counter() - started
    wrong = np.abs(total.sum - np.load(_FOLDER / "sums.npy")).max()
    return {
        "entries (millions)": entries / 1e6,
        "size on disk (GB)": size / 2**30,
        "seconds": seconds,
        "GB/s": size / 2**30 / seconds,
        "anonymous memory before (GB)": before,
        "anonymous memory, most (GB)": most,
        "largest difference of a sum": float(wrong),
    }


def _faults(part: str, found: dict[str, float]) -> Iterator[str]:
    if part == "training":
        peak = max(value for name, value in found.items() if "peak" in name)
        if peak >= MOST_RESIDENT:
            yield f"training: {peak:.2f} GB resident, expected less than {MOST_RESIDENT:g}"
        share = found["loading, share of a step"]
        if share >= MOST_LOADING:
            yield f"training: loading takes {share:.1%} of a step, expected less than {MOST_LOADING:.0%}"
        return
    if found["anonymous memory, most (GB)"] >= MOST_ANONYMOUS:
        yield f"statistics: {found['anonymous memory, most (GB)']:.2f} GB, expected less than {MOST_ANONYMOUS:g}"
    if found["largest difference of a sum"] > 0:
        yield f"statistics: sums differ by up to {found['largest difference of a sum']:g} from those written"


if __name__ == "__main__":
    main()
