"""What a gene says of anybody: its association with benefit under all drugs but one, from sums that are taken once.

A gene that goes with benefit whatever the drug is prognostic; one whose slope differs between this drug and all others
is predictive (a test of interaction; Ballman 2015, doi:10.1200/JCO.2015.63.3651).

Shapes: S strata, G genes, M modalities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ican_ml.targets.association import MIN_EPISODES, GeneValues

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
_ROWS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """float64 [6, S, G, M]: number, and sums of r, r*r, x, x*x and r*x, of what is measured."""

    parts: Float64

    @classmethod
    def over(
        cls, benefit: Float64, values: GeneValues, samples: Int64, stratum: Int64, rows: Int64, n_strata: int
    ) -> Sums:
        """Of some episodes, 512 at a time; benefit, samples and stratum are of all."""
        parts = np.zeros((6, n_strata, len(values.genes), len(values.modalities)))
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            for s in np.unique(stratum[some]):
                chosen = some[stratum[some] == s]
                x = values.of(samples[chosen]).astype(np.float64)
                known = np.isfinite(x)
                x = np.where(known, x, 0.0)
                r = benefit[chosen]
                for k, part in enumerate((np.ones_like(r), r, r * r)):
                    parts[k, s] += np.einsum("e,egm->gm", part, known)
                for k, table in ((3, x), (4, x * x)):
                    parts[k, s] += table.sum(0)
                parts[5, s] += np.einsum("e,egm->gm", r, x)
        return cls(parts=parts)

    def without(self, other: Sums) -> Sums:
        """Over the episodes that ``other`` does not hold."""
        return Sums(parts=self.parts - other.parts)

    def z(self) -> Float64:
        """[G, M]: z-score of the correlation within strata."""
        n, r, rr, x, xx, _ = self.parts
        safe = np.maximum(n, 1)
        covariance = self.by_stratum().sum(0)
        square = (xx - x * x / safe).sum(0) * (rr - r * r / safe).sum(0) / np.maximum(n.sum(0), 1)
        spread = np.sqrt(np.maximum(square, 0))
        told = (n.sum(0) >= MIN_EPISODES) & (spread > 1e-9)
        return np.where(told, covariance / np.where(told, spread, 1.0), np.nan)

    def by_stratum(self) -> Float64:
        """[S, G, M]: how much of the covariance of benefit and value each stratum tells."""
        n, r, _, x, _, rx = self.parts
        found: Float64 = rx - r * x / np.maximum(n, 1)
        return found

    def slope(self) -> tuple[Float64, Float64]:
        """[G, M] twice: by how much benefit rises with one unit of the value, within strata, and its standard error."""
        n, r, rr, x, xx, rx = self.parts
        safe = np.maximum(n, 1)
        square, covariance, total = ((a - b / safe).sum(0) for a, b in ((xx, x * x), (rx, r * x), (rr, r * r)))
        freedom = n.sum(0) - (n > 0).sum(0) - 1
        told = (n.sum(0) >= MIN_EPISODES) & (square > 1e-9) & (freedom > 0)
        square, freedom = np.where(told, square, 1.0), np.where(told, freedom, 1)
        slope = covariance / square
        error = np.sqrt(np.maximum(total - slope * covariance, 0) / freedom / square)
        return np.where(told, slope, np.nan), np.where(told & (error > 0), error, np.nan)


def interaction(own: Sums, others: Sums) -> Float64:
    """[G, M]: z-score of the difference between the slope under a drug and under all others."""
    (slope, error), (other, other_error) = own.slope(), others.slope()
    found: Float64 = (slope - other) / np.hypot(error, other_error)
    return found
