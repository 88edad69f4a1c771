"""One omics modality: ``omics/<name>.h5ad`` of a cohort as sparse rows with their subjects, times and assays.

In: AnnData on disk (https://anndata.readthedocs.io), X [samples x features] CSR or dense float32; obs ``subject_id``,
optional ``sample_time`` (ISO date, "" = unknown) and ``panel``; var ``gene`` and boolean ``panel:<name>`` columns;
``uns["ican"]["kind"]``. Out: :class:`Modality`. "Not measured" stays apart from "zero": by NaN where the matrix is
dense, by the panel where it is sparse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.cohort.asof import Int64, end_of_known, find_subjects
from ican_ml.cohort.checks import Problems, shown
from ican_ml.cohort.files import opened
from ican_ml.cohort.omics_checks import Annotations, Times, check_annotations, check_matrix
from ican_ml.cohort.stored_matrix import StoredMatrix, open_matrix
from ican_ml.encoding.csr import CSRBatch

WHAT = "an HDF5 file as AnnData.write_h5ad writes it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Modality:
    """Samples of one omics modality.

    Attributes
    ----------
    kind
        ``count``, ``binary`` or ``continuous``.
    matrix
        [samples, features], feature ids ascending within a row.
    explicit
        True: the source was dense, every measured entry is stored, zeros too. False: an entry that is not stored is
        zero if the sample's panel measures its feature.
    features, genes
        Feature ids, and the gene symbol of each ("" = none).
    subject_id, sample_time
        int64 [samples]; datetime64[us] [samples], NaT = unknown.
    panels
        Assay name to bool [features]: what it measures. Without assays in the source, one called ``all``.
    panel
        Assay name of each sample.
    """

    name: str
    kind: str
    matrix: CSRBatch
    explicit: bool
    features: tuple[str, ...]
    genes: tuple[str, ...]
    subject_id: Int64
    sample_time: Times
    panels: dict[str, npt.NDArray[np.bool_]]
    panel: npt.NDArray[np.object_]

    def only(self, features: Sequence[str]) -> Modality:
        """The same samples with some of the features, in the modality's own order.

        Raises
        ------
        ValueError
            If the modality lacks one of them.
        """
        wanted = set(features)
        if missing := sorted(wanted.difference(self.features)):
            raise ValueError(
                f"inputs.features.{self.name}: expected features such as {shown(self.features)}, got {missing}"
            )
        columns = [i for i, feature in enumerate(self.features) if feature in wanted]
        return replace(
            self,
            matrix=CSRBatch.from_scipy(self.matrix.to_scipy()[:, columns]),
            features=tuple(self.features[i] for i in columns),
            genes=tuple(self.genes[i] for i in columns),
            panels={name: measured[columns] for name, measured in self.panels.items()},
        )


def latest_samples(modality: Modality, subject_id: Int64, prediction_time: Times) -> Int64:
    """Row of the latest sample that was taken at or before each prediction time.

    Parameters
    ----------
    modality
        The samples. One without a time is usable at any time, and loses to a dated one. Of several at one time the
        last row counts.
    subject_id, prediction_time
        int64 [n], datetime64 [n]; NaT = no limit.

    Returns
    -------
    int64 [n]
        -1 = none.
    """
    moment = modality.sample_time.astype("datetime64[us]").view(np.int64)
    order = np.lexsort((moment, modality.subject_id))
    subjects, first = np.unique(modality.subject_id[order], return_index=True)
    position, found = find_subjects(subjects, np.asarray(subject_id, np.int64))
    if not len(subjects):
        return np.full(len(position), -1, np.int64)
    start, stop = first[position], np.append(first[1:], len(order))[position]
    end = end_of_known(moment[order], start, stop, prediction_time.astype("datetime64[us]").view(np.int64))
    return np.where(found & (end > start), order[np.maximum(end - 1, 0)], -1)


def read_modality(path: Path, problems: Problems) -> Modality | None:
    """Read and check one modality; ``None`` where it has problems, which are noted."""
    file = f"omics/{path.name}"
    noted = problems.n_errors
    with open_modality(path, file, problems) as (about, stored):
        if about is None or stored is None:
            return None
        matrix = opened(stored.load, WHAT, file, problems)
    if matrix is None:
        return None
    check_matrix(matrix, matrix.entries(), about, file, problems)
    if problems.n_errors > noted:
        return None
    return Modality(
        name=path.stem,
        kind=about.kind,
        matrix=matrix.to_csr(),
        explicit=matrix.layout == "dense",
        features=about.features,
        genes=about.genes,
        subject_id=about.subject_id,
        sample_time=about.sample_time,
        panels=about.panels,
        panel=about.panel,
    )


@contextmanager
def open_modality(
    path: Path, file: str, problems: Problems
) -> Iterator[tuple[Annotations | None, StoredMatrix | None]]:
    """Annotations of a modality and its matrix on disk, which can be read while the context lasts.

    Either is ``None``, noted, where it cannot be read; so is the matrix where its shape is not that of obs and var.
    """
    import h5py

    stored = opened(lambda: h5py.File(path, "r"), WHAT, file, problems)
    if stored is None:
        yield None, None
        return
    with stored:
        about = opened(lambda: _annotations(stored, file, problems), WHAT, file, problems)
        matrix = None
        if about is not None:
            shape = len(about.panel), len(about.features)
            matrix = opened(lambda: open_matrix(stored["X"], shape, file, problems), WHAT, file, problems)
        yield about, matrix


def _annotations(stored: Any, file: str, problems: Problems) -> Annotations | None:
    import pandas as pd
    from anndata.io import read_elem

    parts = {key: read_elem(stored[key]) for key in ("obs", "var", "uns") if key in stored}
    absent = [key for key in ("X", "obs", "var") if key not in stored]
    absent += [key for key in ("obs", "var") if key in parts and not isinstance(parts[key], pd.DataFrame)]
    if absent:
        fix = "write it with AnnData.write_h5ad"
        problems.add("missing-element", file, expected="X, obs and var", got=f"no {shown(absent)}", fix=fix)
        return None
    return check_annotations(parts["obs"], parts["var"], parts.get("uns"), file, problems)
