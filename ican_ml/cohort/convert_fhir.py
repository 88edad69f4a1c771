"""FHIR R4 of many patients -> a cohort folder (format ``ican-cohort/1``), every resource accounted for.

In: a file or a folder of Bundles and single resources (``.json``, ``.json.gz``) and of bulk export (``.ndjson``,
``.ndjson.gz``: one resource a line, of any types, in any files). Out: ``cohort.json``, ``records/`` (MEDS 0.4),
``omics/mutation.h5ad`` where there are variants, and ``conversion.json``. What a resource becomes is said in
:mod:`ican_ml.cohort.fhir_resources`.

The source is read twice: first for what resources say of each other (:class:`~ican_ml.cohort.fhir.Index`), then for the
events. One file, or one line of bulk export, is in memory at a time, beside the index and the events themselves.

Files are named by number in messages: their names may hold names of patients.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ican_ml.cohort.accounting import Accounting
from ican_ml.cohort.fhir import MODALITY, Index, group_samples, read_resources, resources_of
from ican_ml.cohort.fhir_resources import CLINICAL, Event, Variant
from ican_ml.cohort.fhir_values import FhirError, zone_of
from ican_ml.cohort.meds_writer import write_converted

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

Progress = Callable[[int, int], None]
_LINES = (".ndjson", ".ndjson.gz", ".jsonl", ".jsonl.gz")
_DOCUMENTS = (".json", ".json.gz")
_CHUNK = 200_000
_TYPES = CLINICAL | {
    *("Account", "Appointment", "CarePlan", "CareTeam", "Claim", "ClaimResponse", "Communication", "Composition"),
    *("Consent", "Coverage", "Device", "DocumentReference", "EpisodeOfCare", "ExplanationOfBenefit", "Flag"),
    *("FamilyMemberHistory", "Goal", "Group", "Location", "Media", "Medication", "MolecularSequence", "NutritionOrder"),
    *("Organization", "Patient", "Practitioner", "PractitionerRole", "Provenance", "QuestionnaireResponse"),
    *("RelatedPerson", "RequestGroup", "ResearchStudy", "ResearchSubject", "RiskAssessment", "ServiceRequest"),
    *("Specimen", "SupplyDelivery", "Task", "BodyStructure", "ClinicalImpression", "AdverseEvent"),
}
_WHOLE = re.compile(r"0|[1-9][0-9]{0,18}")
_ID_LIMIT = 1 << 63
_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "text_value": pl.String,
    "unit": pl.String,
}


@dataclass(kw_only=True, slots=True)
class Conversion:
    """What came of a source.

    Attributes
    ----------
    subjects
        Id of each Patient in the source to its ``subject_id``: it identifies people.
    values_left
        Results that are neither numbers nor codes: their event was kept without a value.
    """

    accounting: Accounting
    subjects: dict[str, int]
    events: int
    samples: int
    values_left: int


def convert_fhir(
    source: Path, out: Path, *, name: str, timezone: str | None = None, progress: Progress | None = None
) -> Conversion:
    """Convert a source into a new cohort folder.

    Parameters
    ----------
    out
        Folder to fill: new or empty.
    name
        Of the cohort.
    timezone
        IANA name of the zone whose wall time to keep; needed where times carry a zone.
    progress
        Called as (files done, files in all); each file counts twice.

    Raises
    ------
    FhirError
        If there is no file, no patient, or a time has a zone and ``timezone`` is ``None``.
    """
    files = find_files(source)
    zone = zone_of(timezone)
    tell = progress or (lambda done, total: None)
    index = Index()
    for position, (resource, full_url) in enumerate(_read_files(files, lambda n: tell(n, 2 * len(files)))):
        index.add(position, resource, full_url)
    if not index.patients:
        raise FhirError(f"expected at least one Patient among the resources, got none in {len(files)} files")
    subjects = number_subjects(index.patients)
    gathered = _gather(files, index, subjects, zone, lambda n: tell(len(files) + n, 2 * len(files)))
    events = gathered.frame()
    codes = _codes(events, gathered.displays)
    write_converted(out, events, codes, gathered.accounting, name=name, source_timezone=timezone)
    samples = _write_variants(out, gathered.variants)
    return Conversion(
        accounting=gathered.accounting,
        subjects=subjects,
        events=len(events),
        samples=samples,
        values_left=gathered.values_left,
    )


def find_files(source: Path) -> list[Path]:
    """Files of a source, sorted by path."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FhirError("SRC: expected a file or folder of FHIR resources, found none")
    files = sorted(path for path in source.rglob("*") if path.is_file() and path.name.endswith(_LINES + _DOCUMENTS))
    if not files:
        raise FhirError("SRC: expected files that end in .json, .json.gz, .ndjson or .ndjson.gz, got none")
    return files


def number_subjects(patients: set[str]) -> dict[str, int]:
    """``subject_id`` of every patient: the id itself where all are whole numbers, else its position when sorted."""
    whole = all(_WHOLE.fullmatch(p) and int(p) < _ID_LIMIT for p in patients)
    return {p: int(p) if whole else i for i, p in enumerate(sorted(patients), start=1)}


def _read_files(files: list[Path], done: Callable[[int], None]) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """Resources of all files with their ``fullUrl``; ``None`` for a file, line or entry that is no resource."""
    for number, path in enumerate(files, start=1):
        try:
            with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
                for text in file if path.name.endswith(_LINES) else [file.read()]:
                    if text.strip():
                        yield from _parsed(text)
        except (OSError, EOFError, zlib.error):
            yield None, ""
        done(number)


def _parsed(text: bytes) -> Iterator[tuple[dict[str, Any] | None, str]]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    yield from resources_of(document)


@dataclass(kw_only=True, slots=True)
class _Gathered:
    """Events in frames of some rows each, variants by subject, and the accounting."""

    accounting: Accounting = field(default_factory=Accounting)
    variants: dict[int, list[Variant]] = field(default_factory=dict)
    displays: dict[str, str] = field(default_factory=dict)
    values_left: int = 0
    rows: list[tuple[int, datetime | None, str, float | None, str | None, str | None]] = field(default_factory=list)
    frames: list[pl.DataFrame] = field(default_factory=list)

    def add(self, subject: int, event: Event) -> None:
        """Take in one event."""
        self.rows.append((subject, event.time, event.code, event.value, event.limit or None, event.unit or None))
        if len(self.rows) >= _CHUNK:
            self.flush()

    def flush(self) -> None:
        """Move rows into a frame, which holds them in a tenth of the memory."""
        self.frames.append(pl.DataFrame(self.rows, schema=_SCHEMA, orient="row"))
        self.rows = []

    def frame(self) -> pl.DataFrame:
        """All events."""
        self.flush()
        return pl.concat(self.frames)


def _gather(
    files: list[Path], index: Index, subjects: dict[str, int], zone: ZoneInfo | None, done: Callable[[int], None]
) -> _Gathered:
    gathered = _Gathered()
    tally = gathered.accounting
    for read in read_resources(_read_files(files, done), index, zone):
        table = read.kind if read.kind in _TYPES else "other"  # a text that is no type may be anything
        tally.read(table)
        if read.found.reason is not None:
            tally.left(table, read.found.reason)
            continue
        tally.converted(table)
        subject = subjects[read.patient]
        for event in read.found.events:
            gathered.add(subject, event)
        if read.found.variants:
            gathered.variants.setdefault(subject, []).extend(read.found.variants)
        gathered.displays.update(read.found.displays)
        gathered.values_left += read.found.values_left
    tally.check()
    return gathered


def _codes(events: pl.DataFrame, displays: dict[str, str]) -> pl.DataFrame:
    codes = events["code"].unique().sort().to_list()
    return pl.DataFrame(
        {
            "code": codes,
            "description": [displays.get(code) for code in codes],
            "parent_codes": [None] * len(codes),
        },
        schema={"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)},
    )


def _write_variants(out: Path, variants: dict[int, list[Variant]]) -> int:
    """``omics/mutation.h5ad``; gives the number of samples."""
    samples = [(subject, sample) for subject in sorted(variants) for sample in group_samples(variants[subject])]
    if not samples:
        return 0
    import anndata
    import pandas as pd
    import scipy.sparse as sp

    genes = sorted({gene for _, sample in samples for gene in sample.genes})
    column = {gene: i for i, gene in enumerate(genes)}
    found = [[column[gene] for gene, mutated in sorted(sample.genes.items()) if mutated] for _, sample in samples]
    indices = np.array([i for row in found for i in row], np.int32)
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in found])]).astype(np.int32)
    obs = pd.DataFrame(
        {
            "subject_id": np.array([subject for subject, _ in samples], np.int64),
            "sample_time": [sample.time.isoformat() for _, sample in samples],
        },
        index=pd.Index([f"sample-{i}" for i in range(1, len(samples) + 1)], name="sample_id"),
    )
    data = anndata.AnnData(
        X=sp.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=(len(samples), len(genes))),
        obs=obs,
        var=pd.DataFrame({"gene": genes}, index=pd.Index(genes, name="feature_id")),
    )
    data.uns["ican"] = {"kind": "binary"}
    (out / "omics").mkdir(parents=True, exist_ok=True)
    data.write_h5ad(out / "omics" / f"{MODALITY}.h5ad", compression="lzf")
    return len(samples)
