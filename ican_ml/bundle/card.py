"""The model card of a bundle: what it is for, from whom it learned, how well it does and for whom, where it ends.

After Mitchell et al. 2019 (arXiv:1810.03993). Filled from the run; the deployer's part is left open. Held-out metrics
come with 95% intervals; a group of fewer than `MIN_SUBJECTS` subjects is told as "fewer than 10", and not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ican_ml.evaluation.evaluate import MIN_SUBJECTS

FORMAT = "ican-model-card/1"
INTENDED_USE = (
    "Research on which treatment a patient is likely to respond to, by those who know both the disease and the cohort "
    "the model learned from. Not for a decision about a patient without a clinician, and not for patients unlike those "
    "it was trained on."
)
LIMITS = (
    "It learned associations from treatments that doctors chose: a ranking is a hypothesis, not an effect.",
    "Probabilities hold for patients like those of the training cohort; another hospital needs its own evaluation.",
    "What was not measured is unknown to the model: it answers, and less well.",
    "Research software without regulatory clearance.",
)
OPEN_FIELDS = ("Site", "Responsible person", "Intended population here", "Local evaluation", "Date of the next review")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """See the module docstring.

    Attributes
    ----------
    name
        Of the run.
    cohort
        Name, description and sizes.
    subjects
        By indication, how many; "fewer than 10" where that is so.
    inputs
        Modalities, covariates, whether the record is read, and how many treatments are known.
    performance
        By task: the model's ``overall`` and ``by_indication`` as :meth:`TaskMetrics.to_dict` gives them; ``baselines``
        with each one's overall metrics; ``sets`` where it has prediction sets.
    versions
        Of what made the bundle.
    """

    name: str
    cohort: Mapping[str, str | int | float]
    subjects: Mapping[str, int | str]
    inputs: Mapping[str, Any]
    performance: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    intended_use: str = INTENDED_USE
    limits: Sequence[str] = LIMITS
    deployer: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(OPEN_FIELDS, ""))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ModelCard:
        """Read what :meth:`to_json` wrote."""
        if document.get("format") != FORMAT:
            raise ValueError(f"model card: expected format {FORMAT!r}, got {document.get('format')!r:.80}")
        return cls(**{name: value for name, value in document.items() if name != "format"})

    def text(self) -> str:
        """As Markdown."""
        parts = [f"# Model card: {self.name}", "## Intended use", self.intended_use, "## Cohort"]
        parts.append("\n".join(f"- {name}: {value}" for name, value in self.cohort.items()))
        if self.subjects:
            parts.append(_table(("indication", "subjects"), [(k, str(v)) for k, v in self.subjects.items()]))
        parts += ["## Inputs", "\n".join(f"- {name}: {_listed(value)}" for name, value in self.inputs.items())]
        parts += ["## Performance on held-out patients", "Estimate [95% interval by subject]."]
        for task, found in self.performance.items():
            parts += [f"### {task}", _performance(found)]
        parts += ["## Limits", "\n".join(f"- {limit}" for limit in self.limits)]
        parts += ["## Made with", "\n".join(f"- {name} {version}" for name, version in self.versions.items())]
        parts += [
            "## To be filled in by the deployer",
            "\n".join(f"- {name}: {value}" for name, value in self.deployer.items()),
        ]
        return "\n\n".join(part.rstrip() for part in parts) + "\n"


def suppressed(counts: Mapping[str, int]) -> dict[str, int | str]:
    """Counts by group, the largest first; small ones not told."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {name: count if count >= MIN_SUBJECTS else f"fewer than {MIN_SUBJECTS}" for name, count in ordered}


def _performance(found: Mapping[str, Any]) -> str:
    groups = {"all": found["overall"], **found["by_indication"]}
    named = {**{f"model, {name}": group for name, group in groups.items()}, **found["baselines"]}
    metrics = list(found["overall"]["metrics"])
    rows = [
        (name, str(group["subjects"]), *(_interval(group["metrics"].get(metric)) for metric in metrics))
        for name, group in named.items()
    ]
    text = _table(("by", "subjects", *(metric.replace("_", " ") for metric in metrics)), rows)
    sets = found.get("sets")
    if sets is not None:
        coverage, size = (_interval(sets["overall"]["metrics"][each]) for each in ("coverage", "mean_size"))
        text += (
            f"\n\nPrediction sets asked to hold the truth in {sets['asked_coverage']:.0%}: {coverage}, answers {size}."
        )
    return text


def _interval(found: Mapping[str, float | None] | None) -> str:
    if found is None or found["estimate"] is None:
        return ""
    ends = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    return f"{found['estimate']:.3f}{ends}"


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
