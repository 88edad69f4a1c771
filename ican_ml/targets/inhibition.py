"""Virtual inhibition: does a drug help those whom an inhibitor of this gene, and of nothing else, is predicted to help?

A drug is partly its targets, so the network answers for a regimen that has no identity and one target gene, which it
never met (the idea of Yuan et al. 2016, doi:10.1016/j.cels.2016.06.005, that a drug's target is the gene whose
perturbation it resembles). Asked about every gene, each patient is encoded once. To be evidence, the network must not
have learned from the drug's outcomes, or it would repeat what it was told of its targets.

Shapes: N patients, E episodes, G genes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ican_ml.inputs.encode import EncodedPatients
from ican_ml.inputs.regimens import INHIBITOR
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.targets.asking import benefit, regimens_for_all

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
_GENES, _QUERIES = 1024, 16_384


@dataclass(frozen=True, kw_only=True, slots=True)
class Inhibition:
    """Predicted benefits under virtual inhibitors, by networks that each never saw some drugs.

    Attributes
    ----------
    benefit
        By network, float32 [N, G]; NaN where a network does not know the gene or was not asked.
    network_of
        Which network never saw the drug (or class).
    patient
        int64 [E]: row of ``benefit``.
    """

    benefit: Mapping[int, Float32]
    network_of: Mapping[str, int]
    patient: Int64

    def of(self, name: str, rows: Int64) -> Float32:
        """[rows, G]: what is particular to each gene in some episodes with this drug, beyond that of the middle one."""
        found = self.benefit[self.network_of[name]][self.patient[rows]]
        specific: Float32 = found - np.nanmedian(found, axis=1, keepdims=True)
        return specific


def virtual_inhibition(
    network: PatientTransformer,
    schema: InputSchema,
    encoded: EncodedPatients,
    rows: Int64,
    genes: Sequence[str],
    *,
    task: int = 0,
) -> Float32:
    """float32 [rows, G]: predicted benefit of some patients under an inhibitor of each gene; NaN where unknown."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    network.eval()
    known = [g for g, gene in enumerate(genes) if gene in schema.gene_id]
    found = np.full((len(rows), len(genes)), np.nan, np.float32)
    pieces = [known[start : start + _GENES] for start in range(0, len(known), _GENES)]
    with tqdm(total=len(rows) * len(pieces), disable=None, unit="patient", desc="virtual inhibition") as bar:
        for piece in pieces:
            inhibitors = [(INHIBITOR + genes[g],) for g in piece]
            at_once = max(1, _QUERIES // len(piece))
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                asked = regimens_for_all(schema, encoded, some, inhibitors)
                found[start : start + len(some), piece] = benefit(network, asked, task)
                bar.update(len(some))
    return found
