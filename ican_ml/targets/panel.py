"""A short panel of markers, by stability selection, and what it predicts beside the full model.

Markers are the values of genes, for all patients alike (prognostic) or for those under one drug or class (predictive).
The strongest by association are screened; the lasso picks among them in random halves of the patients, and what is
picked in most halves stays (Meinshausen and Buehlmann 2010, doi:10.1111/j.1467-9868.2010.00740.x). Everything is chosen
on training episodes; what the panel is worth is measured on others.

Shapes: E episodes, K markers, G genes, M modalities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ican_ml.targets.elsewhere import Sums
from ican_ml.targets.observations import Observations

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
ANY = ""
_SCREENED, _PICKED, _HALVES, _OFTEN = 300, 10, 100, 0.6
_TOGETHER = 0.7  # of markers that correlate more, as neighbours on an amplicon do, the stronger one stands for both
_STEPS, _WEAKEST, _TOLERANCE, _ITERATIONS = 40, 0.05, 1e-3, 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """A gene's value, of all patients (``under`` is "") or of those under one drug or class; in which share of halves
    it was picked; ``rises``: whether benefit rises with it."""

    gene: str
    modality: str
    under: str
    picked: float
    rises: bool


def choose_panel(observed: Observations, rows: Int64, *, seed: int) -> tuple[Marker, ...]:
    """The markers that stay, most often picked first.

    Parameters
    ----------
    rows
        Training episodes; no others are looked at.
    """
    from sklearn.linear_model import lasso_path

    rows = rows[np.isfinite(observed.benefit[rows])]
    candidates = _screened(observed, rows)
    if not candidates:
        return ()
    columns = marker_values(observed, rows, candidates).astype(np.float64)
    apart = _apart(columns)
    candidates, columns = [candidates[k] for k in apart], columns[:, apart]
    benefit = observed.benefit[rows] - observed.benefit[rows].mean()
    rng = np.random.default_rng([seed, 2])
    patient = observed.patient[rows]
    count = np.zeros(len(candidates))
    for _ in range(_HALVES):
        half = (rng.random(int(patient.max()) + 1) < 0.5)[patient]
        x, y = _standardised(columns[half]), benefit[half]
        strengths = np.abs(x.T @ y).max() / len(y) * np.geomspace(1, _WEAKEST, _STEPS)
        coefficients = lasso_path(x, y, alphas=strengths, tol=_TOLERANCE, max_iter=_ITERATIONS)[1]
        size = (coefficients != 0).sum(0)
        count += coefficients[:, np.flatnonzero(size <= _PICKED)[-1]] != 0
    direction = np.sign(columns.T @ benefit)
    stay = sorted(np.flatnonzero(count >= _OFTEN * _HALVES).tolist(), key=lambda k: -count[k])
    names = [m.name for m in observed.values.modalities]
    return tuple(
        Marker(
            gene=observed.genes[g],
            modality=names[m],
            under=ANY if d < 0 else observed.names[d],
            picked=float(count[k] / _HALVES),
            rises=bool(direction[k] > 0),
        )
        for k in stay
        for d, g, m in [candidates[k]]
    )


def panel_columns(observed: Observations, rows: Int64, panel: tuple[Marker, ...]) -> Float32:
    """float32 [rows, K]: the markers' values, centred by stratum; 0 where not measured or under another drug."""
    names = [m.name for m in observed.values.modalities]
    genes = {gene: g for g, gene in enumerate(observed.genes)}
    place = {name: d for d, name in enumerate(observed.names)} | {ANY: -1}
    return marker_values(observed, rows, [(place[k.under], genes[k.gene], names.index(k.modality)) for k in panel])


def marker_values(observed: Observations, rows: Int64, markers: list[tuple[int, int, int]]) -> Float32:
    """float32 [rows, K] of (drug or class, -1 = any; gene; modality): 0 where not measured or under another drug."""
    found = np.zeros((len(rows), len(markers)), np.float32)
    drug, gene, modality = np.array(markers, np.int64).reshape(-1, 3).T
    given = np.zeros((len(observed.benefit), len(observed.names) + 1), bool)
    given[observed.row, observed.name] = True
    given[:, -1] = True
    for start in range(0, len(rows), 512):
        some = rows[start : start + 512]
        value = np.nan_to_num(observed.values.of(observed.samples[some])[:, gene, modality])
        found[start : start + len(some)] = value * given[some][:, drug]
    return found


def _screened(observed: Observations, rows: Int64) -> list[tuple[int, int, int]]:
    """The strongest markers by |z|: within strata, of all patients and under each drug or class."""
    n_strata = len(observed.indications)
    inside = np.zeros(len(observed.benefit), bool)
    inside[rows] = True
    tables = []
    for d in (-1, *observed.often):
        some = rows if d < 0 else observed.rows(d)[inside[observed.rows(d)]]
        found = Sums.over(observed.benefit, observed.values, observed.samples, observed.stratum, some, n_strata)
        tables.append(np.abs(np.nan_to_num(found.z())))
    strength = np.stack(tables)
    best = np.argsort(-strength, axis=None, kind="stable")[:_SCREENED]
    order = (-1, *observed.often)
    chosen = zip(*np.unravel_index(best, strength.shape), strict=True)
    return [(order[d], int(g), int(m)) for d, g, m in chosen if strength[d, g, m] > 0]


def _apart(columns: Float64) -> list[int]:
    """Markers, strongest first, none of which says again what an earlier one says."""
    x = _standardised(columns)
    alike = np.abs(x.T @ x) > _TOGETHER
    kept: list[int] = []
    for k in range(columns.shape[1]):
        if not alike[k, kept].any():
            kept.append(k)
    return kept


def _standardised(columns: Float64) -> Float64:
    """Centred columns of length 1; constant ones stay 0."""
    x = columns - columns.mean(0)
    length = np.sqrt(np.square(x).sum(0))
    found: Float64 = np.divide(x, length, out=np.zeros_like(x), where=length > 1e-9)
    return found
