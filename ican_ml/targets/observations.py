"""A cohort's outcome as the lines of evidence see it: residual benefit of every episode, by drug or class of drugs.

Shapes: E episodes, K labelled pairs of an episode and a drug of its regimen (or a class), G genes, M modalities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ican_ml.cohort.cohort import Cohort
from ican_ml.cohort.omics import latest_samples
from ican_ml.evaluation.outcome import Outcome
from ican_ml.targets.association import MIN_EPISODES, GeneValues
from ican_ml.targets.benefit import residual_benefit
from ican_ml.targets.config import By
from ican_ml.targets.profiles import likeness

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Observations:
    """See the module docstring.

    Attributes
    ----------
    by
        What ``names`` are: drugs, or classes (drugs of one ATC code together).
    names, members, listed
        The drugs or classes, the drugs of each, and the positions in ``genes`` of its listed targets.
    benefit, stratum, patient
        [E]: NaN where there is no outcome; numbered from 0.
    level
        [E]: of the patient, in all their episodes: what drug and indication leave; NaN but for the first of them.
    indications
        Name of each stratum.
    row, name
        int64 [K]: an episode, and a position in ``names``.
    values, samples
        Gene values, and int64 [E, M] the sample of each episode in each modality (-1 = none).
    """

    by: By
    names: tuple[str, ...]
    members: tuple[tuple[str, ...], ...]
    listed: tuple[tuple[int, ...], ...]
    benefit: Float64
    level: Float64
    stratum: Int64
    patient: Int64
    indications: tuple[str, ...]
    row: Int64
    name: Int64
    values: GeneValues
    samples: Int64

    @classmethod
    def of(cls, cohort: Cohort, outcome: Outcome, *, by: By = "drug") -> Observations:
        """Of a cohort with omics and the outcome of its episodes, row by row; those without a treatment take no part.

        Raises
        ------
        ValueError
            If there are no omics.
        """
        episodes = cohort.episodes
        if not cohort.modalities:
            raise ValueError("targets: expected a cohort with omics, got none")
        treatments = episodes["treatment"].to_list()
        subject = episodes["subject_id"].to_numpy()
        patient = np.unique(subject, return_inverse=True)[1].astype(np.int64)
        labels = episodes["indication"].cast(pl.String) if "indication" in episodes.columns else None
        indication = labels.fill_null("unknown").to_list() if labels is not None else [""] * len(episodes)
        stratum, indications = _numbered(indication)
        regimen, _ = _numbered([tuple(sorted(treatment or ())) for treatment in treatments])
        benefit = residual_benefit(outcome, regimen=regimen, stratum=stratum, patient=patient)
        drugs = sorted({drug for treatment in treatments for drug in treatment or ()})
        group_of = {drug: (drug if by == "drug" else cohort.classes.get(drug)) for drug in drugs}
        labelled = np.flatnonzero(np.isfinite(benefit)).tolist()
        given = [(row, group) for row in labelled for drug in treatments[row] or () if (group := group_of.get(drug))]
        names = tuple(sorted({group for _, group in given}))
        place = {name: i for i, name in enumerate(names)}
        pairs = np.array(sorted({(row, place[group]) for row, group in given}), np.int64).reshape(-1, 2)
        genes = tuple(sorted({gene for m in cohort.modalities.values() for gene in m.genes if gene}))
        at = {gene: i for i, gene in enumerate(genes)}
        members = tuple(tuple(drug for drug, group in group_of.items() if group == name) for name in names)
        targets = [{gene for drug in each for gene in cohort.targets.get(drug, ())} for each in members]
        values = GeneValues(cohort.modalities, genes)
        moment = episodes["prediction_time"].cast(pl.Datetime("us")).to_numpy()
        return cls(
            by=by,
            names=names,
            members=members,
            listed=tuple(tuple(sorted(at[gene] for gene in each if gene in at)) for each in targets),
            benefit=benefit,
            level=_levels(residual_benefit(outcome, regimen=regimen, stratum=stratum), patient),
            stratum=stratum,
            patient=patient,
            indications=tuple(map(str, indications)),
            row=pairs[:, 0],
            name=pairs[:, 1],
            values=values,
            samples=np.stack([latest_samples(m, subject, moment) for m in values.modalities], axis=1),
        )

    @property
    def genes(self) -> tuple[str, ...]:
        """All genes of the omics, in alphabetical order."""
        return self.values.genes

    @property
    def often(self) -> list[int]:
        """Positions of the names with enough labelled episodes."""
        count = np.bincount(self.name, minlength=len(self.names)).tolist()
        return [d for d, n in enumerate(count) if n >= MIN_EPISODES]

    def check(self) -> Observations:
        """The same, where something can be discovered.

        Raises
        ------
        ValueError
            If no drug (class) has enough episodes.
        """
        if not self.often:
            raise ValueError(f"targets: expected a {self.by} with {MIN_EPISODES} labelled episodes, got none")
        return self

    def rows(self, name: int) -> Int64:
        """The labelled episodes of a drug or class."""
        found: Int64 = self.row[self.name == name]
        return found

    def likeness(self) -> Float64:
        """[names, names]: see :func:`ican_ml.targets.profiles.likeness`."""
        return likeness(self.benefit[self.row], self.patient[self.row], self.name, len(self.names))

    def strata(self, rows: Int64) -> Int64:
        """Strata of some episodes, numbered anew from 0."""
        found: Int64 = np.unique(self.stratum[rows], return_inverse=True)[1].astype(np.int64)
        return found


def _levels(benefit: Float64, patient: Int64) -> Float64:
    """Each patient's mean, at their first labelled episode; NaN at others."""
    rows = np.flatnonzero(np.isfinite(benefit))
    first, of = np.unique(patient[rows], return_index=True, return_inverse=True)[1:]
    found = np.full(len(benefit), np.nan)
    found[rows[first]] = np.bincount(of, benefit[rows]) / np.bincount(of)
    return found


def _numbered(values: list[object]) -> tuple[Int64, list[object]]:
    """int64 [E]: equal values have one number, from 0; and the values by number."""
    number: dict[object, int] = {}
    found = np.array([number.setdefault(value, len(number)) for value in values], np.int64)
    return found, list(number)
