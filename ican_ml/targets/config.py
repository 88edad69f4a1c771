"""What discovery of targets and biomarkers may cost, and what it is to report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

By = Literal["drug", "class"]


@dataclass(kw_only=True, slots=True)
class TargetsConfig:
    """See the module docstring.

    Attributes
    ----------
    by
        ``drug``, or ``class``: drugs of one ATC code together.
    networks
        The drugs are dealt out to so many networks, each fitted without its share of them; 0 = no virtual inhibition.
    permutations
        Of the outcomes of each drug.
    patients, genes
        How many are asked in attribution and alteration at most.
    level
        False discovery rate.
    lists
        CSV file with the columns ``gene`` and ``list``: known drivers, known targets, essential genes and the like.
    """

    by: str = "drug"
    networks: int = 5
    permutations: int = 1000
    patients: int = 400
    genes: int = 50
    level: float = 0.1
    lists: str | None = None

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise ValueError(f"targets.by: expected drug or class, got {self.by!r}")
        if self.networks < 0 or self.networks == 1:
            raise ValueError(f"targets.networks: expected 0 or at least 2, got {self.networks}")
        for name in ("permutations", "patients", "genes"):
            if getattr(self, name) < 1:
                raise ValueError(f"targets.{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.level < 1:
            raise ValueError(f"targets.level: expected a rate between 0 and 1, got {self.level}")

    @property
    def choice(self) -> By:
        """The checked ``by``."""
        return cast("By", self.by)
