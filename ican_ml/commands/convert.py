"""``ican convert``: records and labels of other formats become a cohort, every row of the source accounted for."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ican_ml.commands import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("convert", help="make a cohort of records or labels")
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    _add_omop(sources)
    _add_fhir(sources)
    _add_labels(sources)


def _add_omop(sources: Commands) -> None:
    omop = sources.add_parser(
        "omop",
        help="OMOP CDM 5.3.1 and 5.4: tables as CSV or Parquet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  ican convert omop exports/omop cohorts/hospital",
    )
    omop.add_argument("src", type=Path, metavar="SRC", help="folder, one file a table: .csv, .csv.gz or .parquet")
    _add_common(omop)
    omop.set_defaults(run=_omop, extra="cohort")


def _add_fhir(sources: Commands) -> None:
    fhir = sources.add_parser(
        "fhir",
        help="FHIR R4: Bundles and bulk export",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  ican convert fhir exports/2024 cohorts/hospital --timezone Europe/Helsinki",
    )
    fhir.add_argument("src", type=Path, metavar="SRC", help="folder, or one file: .json, .ndjson, or packed by gzip")
    _add_common(fhir)
    fhir.set_defaults(run=_fhir, extra="cohort")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the cohort to make")
    parser.add_argument("--name", metavar="NAME", help="of the cohort (default: that of OUT)")
    parser.add_argument("--timezone", metavar="ZONE", help="whose wall time to keep, like Europe/Helsinki")
    parser.add_argument(
        "--keep-ids",
        type=Path,
        metavar="FILE.json",
        help="where to write the id of each patient beside its subject_id: it identifies people; never within OUT",
    )


def _add_labels(sources: Commands) -> None:
    labels = sources.add_parser("labels", help="MEDS labels become the episodes of a cohort")
    labels.add_argument("labels", type=Path, metavar="LABELS", help="Parquet file, or a folder of them")
    labels.add_argument("cohort", type=Path, metavar="COHORT", help="folder of a cohort, or of a MEDS dataset")
    labels.add_argument("--out", type=Path, metavar="OUT", help="cohort to make (default: add the episodes to COHORT)")
    labels.add_argument("--task", metavar="NAME", help="name of the task (default: that of LABELS)")
    labels.add_argument("--positive", metavar="VALUE", help="category or whole number that is true, all others false")
    labels.set_defaults(run=_labels, extra="cohort")


def _omop(parsed: argparse.Namespace) -> None:
    from ican_ml.cohort.convert_omop import convert_omop

    found = _converted(parsed, convert_omop, unit="table")
    print(
        f"{found.events:,} events of {len(found.subjects):,} persons; "
        f"{found.values_left:,} values that are neither numbers, concepts nor findings left, their events kept"
    )


def _fhir(parsed: argparse.Namespace) -> None:
    from ican_ml.cohort.convert_fhir import convert_fhir

    found = _converted(parsed, convert_fhir, unit="file")
    print(
        f"{found.events:,} events and {found.samples:,} samples with variants of {len(found.subjects):,} patients; "
        f"{found.values_left:,} results that are neither numbers nor codes kept without their value"
    )


def _converted(parsed: argparse.Namespace, convert: Callable[..., Any], *, unit: str) -> Any:
    """Convert ``src`` into ``out`` under a progress bar, keep the ids where asked to, and print the accounting."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    keep: Path | None = parsed.keep_ids
    if keep is not None and (keep.exists() or parsed.out.resolve() in keep.resolve().parents):
        raise ValueError("--keep-ids: expected a new file outside OUT")
    with _new_folder(parsed.out) as folder, tqdm(disable=None, unit=unit, leave=False) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        name = parsed.name or parsed.out.name
        found = convert(parsed.src, folder, name=name, timezone=parsed.timezone, progress=tell)
    if keep is not None:
        keep.write_text(json.dumps(found.subjects, indent=2) + "\n", encoding="utf-8")
    print(found.accounting.table())
    return found


def _labels(parsed: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ican_ml.cohort.convert_labels import convert_labels

    with tqdm(disable=None, unit="file", leave=False) as bar:

        def tell(file: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(file)
            bar.update(done - bar.n)

        episodes, accounting = convert_labels(
            parsed.labels,
            parsed.cohort,
            out=parsed.out,
            task=parsed.task,
            positive=parsed.positive,
            progress=tell,
        )
    print(accounting.table())
    outcome = "response" if "response" in episodes.columns else "sensitivity"
    task = episodes["task"][0]
    print(
        f"{len(episodes):,} episodes of {episodes['subject_id'].n_unique():,} subjects: task {task}, outcome {outcome}"
    )


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Folder beside ``out`` that takes its place when all is written, and is gone otherwise."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"OUT: expected a new or empty folder, got {out.name!r} with contents; choose another")
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        folder = beside / "cohort"
        folder.mkdir()
        yield folder
        if out.exists():
            out.rmdir()
        folder.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
