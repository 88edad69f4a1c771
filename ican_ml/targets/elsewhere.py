"""What a gene says of anybody: its association with benefit under all drugs but one, from sums that are taken once.

A gene that goes with benefit whatever the drug is prognostic; one that does so under this drug alone is predictive.

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

    def without(self, other: Sums) -> Float64:
        """[G, M]: z-score of the correlation within strata over the episodes that ``other`` does not hold."""
        n, r, rr, x, xx, rx = self.parts - other.parts
        safe = np.maximum(n, 1)
        covariance = (rx - r * x / safe).sum(0)
        square = (xx - x * x / safe).sum(0) * (rr - r * r / safe).sum(0) / np.maximum(n.sum(0), 1)
        spread = np.sqrt(np.maximum(square, 0))
        told = (n.sum(0) >= MIN_EPISODES) & (spread > 1e-9)
        return np.where(told, covariance / np.where(told, spread, 1.0), np.nan)
