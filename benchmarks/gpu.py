"""Every encoding operator on a GPU: how near it comes to what the card's memory allows, and beside what others offer.

    python benchmarks/gpu.py            every part (about a minute on a card with 40 GB or more)
    python benchmarks/gpu.py --check    exit code 1 where a figure falls short; 2 where there is no GPU

Needs torch, CuPy and NumPy, and no more: where rapids-singlecell is installed it is measured beside. Matrices are made
on the card (`gpu_cases.py`): counts of 200,000 rows x 20,000 features, 2,000 entries a row, in float32 and int32 and in
16 bits; mutations, 60 entries a row. All features are equally likely, which real ones are not: where one is in every
row, the gradient of a table takes longer.

Times are medians of CUDA events on torch's current stream, Python's part included; inputs together exceed the card's
cache. "of copy" is the rate of the bytes that an operator must read and write, each once, over that of a copy from the
card to itself in the same run. Tables are read through the caches, so a bag's bytes say little of its time. Peers that
need dense rows get a part of the matrix, already dense; their time is scaled to all rows.

Writes ``benchmarks/results/gpu.json`` (see ``record.py``), with the card, its driver and all versions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # ican_ml need not be installed

# Operator on counts: share of the copy's bandwidth that it must reach.
OF_COPY = {"normalise": 0.6, "statistics": 0.6, "rank": 1 / 3}
OF_STEP = 0.03  # of a training step, at most, for the tokens of its rows
SOURCES = ("ican_ml", "kernels", "configs", *(f"benchmarks/{name}.py" for name in ("gpu", "gpu_cases", "gpu_step")))


def main() -> None:
    """Measure, print, write, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
    arguments = parser.parse_args()
    if reason := _missing():
        print(f"benchmarks/gpu.py: nothing to measure here: {reason}", file=sys.stderr)
        sys.exit(2)
    import gpu_cases
    import gpu_step
    from record import Record

    machine = gpu_cases.machine()
    record = Record("gpu", SOURCES, ("cupy-cuda13x", "cupy-cuda12x", "rapids-singlecell"))
    parts = {"counts": gpu_cases.counts, "mutations": gpu_cases.mutations, "host to device": gpu_cases.transfer}
    measures = {"copy": gpu_cases.copy, **parts, "fused": gpu_cases.fused, "step": gpu_step.step}
    if record.parts.get("card") != machine:  # figures of another card are measured anew
        record.parts.clear()
        record.add("card", machine)
    for name, measure in measures.items():
        if name not in record.parts:
            record.add(name, measure())
            gpu_cases.free()
    print("\n".join(_report(record.parts)))
    short = list(_faults(record.parts))
    if arguments.check and short:
        sys.exit("\n".join(short))


def _missing() -> str:
    """Why nothing can be measured on this machine; empty where it can."""
    for library in ("numpy", "torch", "cupy"):
        if not find_spec(library):
            return f"it needs {library}, which is not installed"
    import torch

    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    from ican_ml.encoding import cuda_device

    return cuda_device.why_unavailable()


def _report(parts: dict[str, Any]) -> Iterator[str]:
    """What was measured; a star where a figure is beyond its bar."""
    card = parts["card"]
    yield f"{card['name']}, driver {card['driver']}, CUDA {card['cuda']}, copy {parts['copy']['GB/s']:.0f} GB/s"
    for name in ("counts", "mutations"):
        yield f"\n{name}: {parts[name]['matrix']}"
        yield f"{'operator':34}{'GB':>8}{'ms':>10}{'of copy':>9}{'bar':>6}   peers, ms"
        for row in parts[name]["rows"]:
            share, bar = _of_copy(parts, row), _bar(name, row)
            limit = "" if bar is None else f"{bar:.0%}{'*' if share < bar else ''}"
            peers = ", ".join(f"{peer} {_figure(ms)}" for peer, ms in row["peers"].items())
            label = f"{row['operator']}, {row['layout']}"
            yield f"{label:34}{row['bytes'] / 1e9:8.3f}{row['ms']:10.3f}{share:9.0%}{limit:>6}   {peers}"
    fused, step, sent = parts["fused"], parts["step"], parts["host to device"]
    yield f"\nrow tokens, {fused['rows']} rows: {fused['ms']:.3f} ms; one after another {fused['apart ms']:.3f} ms: "
    yield "    " + ", ".join(f"{part} {ms:.3f}" for part, ms in fused["parts"].items())
    yield f"rows of one step to the card, ms: {', '.join(f'{way} {ms:.3f}' for way, ms in sent.items())}"
    yield f"training step: {step['ms']:.2f} ms, {step['network']}"
    yield f"    its tokens: {step['tokens ms']:.3f} ms, {step['tokens ms'] / step['ms']:.1%}, at most {OF_STEP:.0%}"


def _faults(parts: dict[str, Any]) -> Iterator[str]:
    for row in parts["counts"]["rows"]:
        share, bar = _of_copy(parts, row), _bar("counts", row)
        if bar is not None and share < bar:
            what = f"{row['operator']}, {row['layout']}"
            yield f"{what} reaches {share:.0%} of the copy's bandwidth, expected at least {bar:.0%}"
    fused, step = parts["fused"], parts["step"]
    if fused["ms"] >= fused["apart ms"]:
        yield f"row tokens take {fused['ms']:.3f} ms, expected less than their parts' {fused['apart ms']:.3f} ms"
    if step["tokens ms"] > OF_STEP * step["ms"]:
        yield f"tokens take {step['tokens ms'] / step['ms']:.1%} of a training step, expected at most {OF_STEP:.0%}"


def _of_copy(parts: dict[str, Any], row: dict[str, Any]) -> float:
    return float(row["bytes"] / row["ms"] / 1e6 / parts["copy"]["GB/s"])


def _bar(matrix: str, row: dict[str, Any]) -> float | None:
    return OF_COPY.get(row["operator"]) if matrix == "counts" else None


def _figure(found: float | str) -> str:
    return found if isinstance(found, str) else f"{found:.3f}"


if __name__ == "__main__":
    main()
