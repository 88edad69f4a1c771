"""Every encoding operator beside what people use today, on 1 and 2 threads, in one run.

    python benchmarks/encoding.py            every matrix (about 5 minutes on 2 cores, under 12 GB of memory)
    python benchmarks/encoding.py --check    exit code 1 where a figure falls short
    python benchmarks/encoding.py small      of counts, mutations, small

Needs the extra `bench` and two cores. Idle threads sleep, as under `make` (OMP_WAIT_POLICY=PASSIVE); where they spin,
torch's embedding_bag on two threads is faster on small. Peers, as shipped (`peers.py`):

    normalise     scanpy's normalize_total and log1p
    rank          the loop of Geneformer's tokenizer; bare: without SciPy's row slicing
    bins          scGPT's binning of dense rows; bare: the same calls on a sparse matrix's entries
    statistics    fast_array_utils.stats.mean_var, what scanpy calls
    bag, gradient torch's embedding_bag and its backward for the table alone; torch.sparse.mm; SciPy's A @ W, A.T @ dY
    pad           torch's _jagged_to_padded_dense_forward: values only, where ours pads ids, values and a mask; it has
                  no `out`, so pays for new memory at every call, as ours does under "fresh output" alone
    row tokens    256 random rows: SciPy's row indexing, NumPy's arithmetic, Geneformer's loop

Ours and its peers take turns, under one rule (`peers.median_ms`). The floor is the time that memory alone needs for the
bytes an operator must read and write, at the bandwidth that was measured just before with as many threads; what fits
the caches, as all of small does, may beat it. Integers are compared with the reference on a subsample of rows, floats
with float64, and peers with ours where they have one answer: scGPT draws at random. Small pads to 256,
counts and mutations to 2,048; embeddings have 256 columns. Versions of all libraries lie in the results.

On two cores another process's work slows two threads by more than one, a small batch's up to a hundredfold: trust the
ratios of an idle machine only, whose load stays near the number of threads. A ratio takes the faster time of either on
up to so many threads, so that who gains nothing from the second, or was held up by it, is not "slow".

Writes ``benchmarks/results/encoding.json`` (see ``record.py``).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numba
import numpy as np
import peers
import torch
from agreement import agree
from matrices import BINS, MATRICES, SEED, TARGET, Matrix, make
from peers import Call
from record import Record
from tqdm import tqdm

from ican_ml.encoding.bag import bag, bag_transposed
from ican_ml.encoding.bin_values import bin_values
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.csr_bag import csr_bag
from ican_ml.encoding.feature_stats import feature_stats
from ican_ml.encoding.normalize_log1p import normalize_log1p
from ican_ml.encoding.pad_ragged import pad_ragged
from ican_ml.encoding.rank_tokens import rank_tokens, row_tokens

# Operator, peer: how many times as fast ours must be on counts, with 1 thread and with 2 (None: no bar). On small, with
# any number of threads, ours must reach ON_SMALL beside each of these peers. All other pairs are for information.
BARS: dict[tuple[str, str], tuple[float | None, float | None]] = {
    ("normalise", "scanpy"): (None, 8),
    ("rank", "Geneformer"): (8, 15),
    ("bins", "scGPT"): (8, 15),
    ("statistics", "fast-array-utils"): (None, 1),
    ("bag", "embedding_bag"): (None, 1.2),
    ("gradient", "embedding_bag"): (None, 3),
    ("gradient", "SciPy"): (None, 1.2),
    ("pad", "torch"): (None, 2),
    ("row tokens", "SciPy, Geneformer"): (None, None),
}
ON_SMALL = 1.0
LARGEST_ERROR = 2.0  # ours against float64, in errors of plain float32

THREADS = (1, 2)
_LIBRARIES = ("anndata", "fast-array-utils", "numba", "scanpy", "scipy")


def main() -> None:
    """Measure, print, write, check."""
    if os.environ.get("OMP_WAIT_POLICY") != "PASSIVE":  # which is read when the libraries load
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("matrices", nargs="*", help=f"of {', '.join(MATRICES)}; default: all")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.matrices) - set(MATRICES)):
        parser.error(f"expected matrices among {', '.join(MATRICES)}, got {', '.join(unknown)}")
    sources = ("ican_ml", *(f"benchmarks/{name}.py" for name in ("agreement", "encoding", "matrices", "peers")))
    record = Record("encoding", sources, _LIBRARIES)
    short: list[str] = []
    for name in arguments.matrices or MATRICES:
        matrix: Matrix | None = None
        for part, measure in _parts(name):
            if part not in record.parts:
                matrix = matrix or make(name)
                record.add(part, measure(matrix))
        print("\n".join(_report(record.parts, name)))
        short += _faults(record.parts, name)
    if arguments.check and short:
        sys.exit("\n".join(short))


def _parts(name: str) -> Iterator[tuple[str, Callable[[Matrix], Any]]]:
    yield name, agree
    for threads in THREADS:
        yield f"{name}, threads {threads}", partial(measure, threads=threads)


@dataclass(frozen=True)
class Case:
    """An operator: ours and its peers; bytes it must read and write.

    Bars are for the first of ours, beside every peer; others, for information, are compared with the last peer.
    """

    operator: str
    ours: dict[str, Call]
    peers: dict[str, Call]
    read: int
    written: int


def cases(m: Matrix) -> Iterator[Callable[[], Case]]:
    """Every operator, set up when its turn comes and dropped after."""
    for setup in (_normalise, _rank, _bins, _statistics, _bag, _gradient, _pad, _row_tokens):
        yield partial(setup, m)


def _normalise(m: Matrix) -> Case:
    values = m.batch.values

    ours = {
        "in place": Call(
            lambda b: normalize_log1p(b, TARGET, out=b.values), lambda: m.batch.with_values(values.copy())
        ),
        "fresh output": Call(lambda: normalize_log1p(m.batch, TARGET)),
    }
    theirs = {"scanpy": Call(peers.scanpy_normalise, m.annotated)}
    return Case("normalise", ours, theirs, values.nbytes, values.nbytes)


def _rank(m: Matrix) -> Case:
    loop = partial(peers.geneformer, m.csr, m.totals, m.medians, m.token_of, m.k)
    ours = {"": Call(lambda: rank_tokens(m.batch, m.scale, m.k))}
    theirs = {"Geneformer": Call(loop), "Geneformer, bare": Call(partial(loop, sliced=False))}
    return Case("rank", ours, theirs, _entries(m.batch) + m.scale.nbytes, 4 * m.batch.n_rows * (m.k + 1))


def _bins(m: Matrix) -> Case:
    rng, dense = np.random.default_rng(SEED), m.normal.to_scipy().toarray()
    ours = {
        "log values": Call(lambda: bin_values(m.normal, BINS)),
        "counts": Call(lambda: bin_values(m.batch, BINS)),
    }
    theirs = {
        "scGPT, bare": Call(lambda: peers.scgpt_bare(m.normal.values, m.normal.offsets, BINS, rng)),
        "scGPT": Call(lambda: peers.scgpt(dense, BINS, rng)),
    }
    return Case("bins", ours, theirs, m.normal.values.nbytes, 4 * m.normal.nnz)


def _statistics(m: Matrix) -> Case:
    theirs = {"fast-array-utils": Call(lambda: peers.mean_var(m.csr))}
    return Case(
        "statistics", {"": Call(lambda: feature_stats(m.batch))}, theirs, _entries(m.batch), 24 * m.csr.shape[1]
    )


def _bag(m: Matrix) -> Case:
    indptr, indices, values, table, _ = m.tensors
    starts = indptr[:-1].int()
    sparse = torch.sparse_csr_tensor(indptr.int(), indices, values, m.csr.shape, check_invariants=False)
    ours = {
        "csr_bag": Call(lambda: csr_bag(indptr, indices, values, table)),
        "NumPy": Call(lambda: bag(m.batch, m.table)),
    }
    theirs = {
        "embedding_bag": Call(lambda: peers.embedding_bag(indices, table, starts, values)),
        "torch.sparse.mm": Call(lambda: torch.sparse.mm(sparse, table)),
        "SciPy": Call(lambda: m.csr @ m.table),
    }
    return Case("bag", ours, theirs, _entries(m.batch) + m.table.nbytes, m.grad.nbytes)


def _gradient(m: Matrix) -> Case:
    indptr, indices, values, table, grad = m.tensors

    def backward(forward: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        leaf = table.clone().requires_grad_()
        bagged = forward(leaf)
        return Call(lambda: torch.autograd.grad(bagged, leaf, grad, retain_graph=True))

    ours = {
        "csr_bag": backward(lambda leaf: csr_bag(indptr, indices, values, leaf)),
        "NumPy": Call(lambda: bag_transposed(m.batch, m.grad)),
    }
    theirs = {
        "embedding_bag": backward(lambda leaf: peers.embedding_bag(indices, leaf, indptr[:-1].int(), values)),
        "SciPy": Call(lambda: m.csr.T @ m.grad),
    }
    return Case("gradient", ours, theirs, _entries(m.batch) + m.grad.nbytes, m.table.nbytes)


def _pad(m: Matrix) -> Case:
    indptr, _, values, _, _ = m.tensors
    run = partial(pad_ragged, m.batch.indptr, [m.batch.indices, m.batch.values], m.k, (-1, 0))
    ours = {"reused buffers": Call(partial(run, out=run())), "fresh output": Call(run)}
    theirs = {"torch": Call(lambda: peers.padded(values, indptr, m.k))}
    kept = int(np.minimum(np.diff(m.batch.indptr), m.k).sum())
    return Case("pad", ours, theirs, 8 * kept + m.batch.indptr.nbytes, 9 * m.batch.n_rows * m.k)


def _row_tokens(m: Matrix) -> Case:
    chosen = partial(peers.chosen_tokens, m.csr, m.some_rows, m.totals, m.medians, m.token_of, m.k)
    ours = {"": Call(lambda: row_tokens(m.batch, m.some_rows, m.scale, m.k, target_sum=TARGET))}
    read = _entries(m.batch.take(m.some_rows)) + m.scale.nbytes
    return Case("row tokens", ours, {"SciPy, Geneformer": Call(chosen)}, read, m.some_rows.size * (8 * m.k + 4))


def _entries(batch: CSRBatch) -> int:
    return int(batch.indptr.nbytes + batch.indices.nbytes + batch.values.nbytes)


def measure(m: Matrix, threads: int) -> dict[str, Any]:
    """Medians of every operator and peer with so many threads, and the floor."""
    numba.set_num_threads(threads)
    torch.set_num_threads(threads)
    bandwidth, rows = peers.bandwidths(), []
    for setup in tqdm(list(cases(m)), disable=None, unit="operator", desc=f"threads {threads}"):
        case = setup()
        found = peers.median_ms({f"ours {name}": call for name, call in case.ours.items()} | case.peers)
        paired = min(case.read, case.written)
        floor = (case.written + paired) / bandwidth["copy"] / 1e6 + (case.read - paired) / bandwidth["read"] / 1e6
        for i, variant in enumerate(case.ours):
            for peer in case.peers if i == 0 else list(case.peers)[-1:]:
                row = {"operator": case.operator, "ours": variant, "first": i == 0, "peer": peer, "floor ms": floor}
                rows.append(row | {"ours ms": found[f"ours {variant}"], "peer ms": found[peer]})
    return {"load": os.getloadavg()[0], "GB/s": bandwidth, "rows": rows}


def _report(parts: dict[str, Any], name: str) -> Iterator[str]:
    """The table of a matrix, and what was checked; a star where a ratio is below its bar."""
    found = parts[name]
    yield f"\n{name}: {found['matrix']}"
    head = f"{'operator':28}{'threads':>8}{'ours ms':>10}  {'peer':18}{'peer ms':>11}"
    yield f"{head}{'ratio':>8}{'bar':>7}{'floor ms':>10}"
    for threads in THREADS:
        for row in _measured(parts, name, threads)["rows"]:
            bar, ratio = _bar(name, threads, row), _ratio(parts, name, threads, row)
            label = f"{row['operator']} {row['ours'] and '(' + row['ours'] + ')'}"
            limit = "" if bar is None else f"{bar:g}{'*' if ratio < bar else ''}"
            line = f"{label:28}{threads:8}{row['ours ms']:10.3f}  {row['peer']:18}{row['peer ms']:11.3f}{ratio:8.2f}"
            yield f"{line}{limit:>7}{row['floor ms']:10.3f}"
    for threads in THREADS:
        run = _measured(parts, name, threads)
        memory = ", ".join(f"{way} {speed:.1f} GB/s" for way, speed in run["GB/s"].items())
        yield f"threads {threads}: memory {memory}; load {run['load']:.1f}, this run's own among it"
    yield "integers equal the reference's: " + ", ".join(f"{key} {value}" for key, value in found["equal"].items())
    yield "errors, in plain float32's: " + ", ".join(f"{key} {value:.2f}" for key, value in found["errors"].items())
    yield "peers give the same answer: " + ", ".join(f"{key} {value}" for key, value in found["peers"].items())


def _faults(parts: dict[str, Any], name: str) -> Iterator[str]:
    for threads in THREADS:
        for row in _measured(parts, name, threads)["rows"]:
            bar, ratio = _bar(name, threads, row), _ratio(parts, name, threads, row)
            if bar is not None and ratio < bar:
                what = f"{name}, threads {threads}: {row['operator']}"
                yield f"{what} is {ratio:.2f} times as fast as {row['peer']}, expected at least {bar:g}"
    found = parts[name]
    for operator, error in found["errors"].items():
        if error > LARGEST_ERROR:
            yield f"{name}: {operator} errs {error:.2f} times as much as float32, expected at most {LARGEST_ERROR:g}"
    for check, whom in (("equal", "the reference"), ("peers", "its peer")):
        yield from (f"{name}: {each} differs from {whom}" for each, same in found[check].items() if not same)


def _bar(name: str, threads: int, row: dict[str, Any]) -> float | None:
    """How many times as fast as a peer ours must be; None where the pair is for information."""
    bars = BARS.get((row["operator"], row["peer"])) if row["first"] else None
    if bars is None or name not in ("counts", "small"):
        return None
    return ON_SMALL if name == "small" else bars[THREADS.index(threads)]


def _ratio(parts: dict[str, Any], name: str, threads: int, row: dict[str, Any]) -> float:
    """How many times as fast as a peer ours is, each at its best on up to so many threads."""
    pair = (row["operator"], row["ours"], row["peer"])
    times = [
        (float(other["peer ms"]), float(other["ours ms"]))
        for count in THREADS
        if count <= threads
        for other in _measured(parts, name, count)["rows"]
        if (other["operator"], other["ours"], other["peer"]) == pair
    ]
    theirs, ours = zip(*times, strict=True)
    return min(theirs) / min(ours)


def _measured(parts: dict[str, Any], name: str, threads: int) -> dict[str, Any]:
    measured: dict[str, Any] = parts[f"{name}, threads {threads}"]
    return measured


if __name__ == "__main__":
    main()
