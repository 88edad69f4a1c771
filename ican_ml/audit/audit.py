"""A cohort's audit as a whole: label permutations and bookkeeping, their verdicts, and how to show them.

In: a prepared cohort and, for each fold, scores from the full information. Out: :class:`Audit`, nothing but
aggregates: as JSON, and as sections for a report or a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from ican_ml.audit.bookkeeping import BOOKKEEPING, INDICATION, bookkeeping_scores
from ican_ml.audit.measure import CHANCE, headline, held_out_metric, labelled_rows
from ican_ml.audit.permutation import Permutations, audit_permutations
from ican_ml.config import RunConfig
from ican_ml.evaluation.baselines import BASELINES
from ican_ml.evaluation.bootstrap import Interval, intervals
from ican_ml.evaluation.outcome import FloatArray
from ican_ml.evaluation.report import Section, metric_label
from ican_ml.evaluation.table import Cell, MeanSd
from ican_ml.evaluation.weighted import WeightedMetric
from ican_ml.fold import Prepared, baseline_scores, fit_fold
from ican_ml.records.caps import Cap

FULL, DIFFERENCE = "full information", "bookkeeping minus indication"
MARGIN = 0.05
# (outcome, information, by) -> one array of held-out scores a fold
_Scores = dict[tuple[str, str, str], list[FloatArray]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bookkeeping:
    """What bookkeeping tells of one outcome, on held-out episodes: folds averaged, intervals by subject.

    Attributes
    ----------
    values
        Information -> by whom ("ridge", "boosting", "model") -> metric; `DIFFERENCE` is one of them.
    """

    outcome: str
    metric: str
    chance: float
    values: Mapping[str, Mapping[str, Interval]]

    @property
    def warns(self) -> bool:
        """Whether bookkeeping alone is above indication alone by more than `MARGIN`, at the interval's lower end."""
        return any(difference.low > MARGIN for difference in self.values[DIFFERENCE].values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """All findings.

    Attributes
    ----------
    caps
        Groups of codes that look cut in the source, of any fold.
    conditions
        On whom it was measured.
    """

    permutations: Sequence[Permutations] = ()
    bookkeeping: Sequence[Bookkeeping] = ()
    caps: Sequence[Cap] = ()
    conditions: str = ""

    @property
    def warnings(self) -> list[str]:
        """One sentence for each finding that asks for a look."""
        leaks = (
            f"{p.outcome}: permuted outcomes are predicted by {p.scorer}, {metric_label(p.metric)} {p.mean:.3f} where "
            f"a sound pipeline gives {p.chance:g}: information about labels leaks into features or evaluation."
            for p in self.permutations
            if p.leaks
        )
        return [*leaks, *(_bookkeeping_warning(found) for found in self.bookkeeping if found.warns)]

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON; undefined numbers become None. :meth:`from_dict` restores it."""
        return {
            "conditions": self.conditions,
            "permutations": [
                asdict(p)
                | {"values": [_finite(value) for value in p.values], "leaks": p.leaks}
                | {name: _finite(getattr(p, name)) for name in ("mean", "sd", "lower")}
                for p in self.permutations
            ],
            "bookkeeping": [
                {
                    "outcome": found.outcome,
                    "metric": found.metric,
                    "chance": found.chance,
                    "values": {
                        information: {by: [_finite(number) for number in value] for by, value in each.items()}
                        for information, each in found.values.items()
                    },
                    "warns": found.warns,
                }
                for found in self.bookkeeping
            ],
            "caps": [asdict(cap) for cap in self.caps],
            "warnings": self.warnings,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Audit:
        """Read what :meth:`to_dict` gave."""
        return cls(
            permutations=[
                Permutations(
                    **{name: p[name] for name in ("outcome", "scorer", "metric", "chance")},
                    values=tuple(_number(value) for value in p["values"]),
                )
                for p in document["permutations"]
            ],
            bookkeeping=[
                Bookkeeping(
                    outcome=found["outcome"],
                    metric=found["metric"],
                    chance=found["chance"],
                    values={
                        information: {by: Interval(*map(_number, value)) for by, value in each.items()}
                        for information, each in found["values"].items()
                    },
                )
                for found in document["bookkeeping"]
            ],
            caps=[Cap(**cap) for cap in document["caps"]],
            conditions=document["conditions"],
        )

    def sections(self) -> list[Section]:
        """What there is, as tables."""
        return [*_permutation_section(self), *_bookkeeping_section(self)]


def audit_cohort(
    config: RunConfig,
    prepared: Prepared,
    *,
    scorer: str,
    full: Sequence[Mapping[str, Mapping[str, FloatArray]]] | None = None,
) -> Audit:
    """Audit a cohort on its splits; ``config`` says how many permutations.

    Parameters
    ----------
    scorer
        Who tries to predict permuted outcomes, see :func:`~ican_ml.audit.permutation.audit_permutations`.
    full
        Scores that a run has, see :func:`audit_bookkeeping`; ``None``: the baselines are fitted here. With them,
        outcomes are permuted on the first split only.
    """
    bookkeeping: list[Bookkeeping] = []
    caps: list[Cap] = []
    if prepared.store is not None:
        known = full or [
            baseline_scores(config, prepared, fit_fold(config, prepared, split), split)
            for split in prepared.splits.values()
        ]
        bookkeeping, caps = audit_bookkeeping(config, prepared, known)
    count = config.evaluation.permutations
    splits = prepared.splits if full is None else dict([next(iter(prepared.splits.items()))])
    permuted: list[Permutations] = []
    why_not = "not asked for"
    if count:
        try:
            permuted = audit_permutations(config, replace(prepared, splits=splits), scorer, count)
        except ValueError as error:  # a small cohort: dealt out anew, too few events may fall to training
            why_not = str(error)
    episodes, held_out = prepared.episodes, sum(len(split.held_out) for split in prepared.splits.values())
    conditions = [
        f"cohort {prepared.cohort.name}: {len(episodes):,} episodes of {episodes['subject_id'].n_unique():,} subjects",
        f"{held_out:,} held out ({', '.join(prepared.splits)})",
        f"permutations on {', '.join(splits)}" if permuted else f"no permutations ({why_not})",
        f"seed {config.seed}",
    ]
    if prepared.store is None:
        conditions.append("no records, so no bookkeeping")
    return Audit(permutations=permuted, bookkeeping=bookkeeping, caps=caps, conditions="; ".join(conditions))


def audit_bookkeeping(
    config: RunConfig, prepared: Prepared, full: Sequence[Mapping[str, Mapping[str, FloatArray]]]
) -> tuple[list[Bookkeeping], list[Cap]]:
    """Score bookkeeping alone and indication alone on every split, and set them beside the full information.

    Parameters
    ----------
    prepared
        Of a cohort with records.
    full
        For each split: outcome -> by whom -> scores of its held-out rows.
    """
    scores: _Scores = {}
    caps: dict[str, Cap] = {}
    rows = [split.held_out for split in prepared.splits.values()]
    for split, known in zip(prepared.splits.values(), full, strict=True):
        found, of_fold = bookkeeping_scores(config, prepared, split, threads=torch.get_num_threads())
        caps |= {cap.group: cap for cap in of_fold}
        found |= {(name, FULL, by): values for name, each in known.items() for by, values in each.items()}
        for key, values in found.items():
            scores.setdefault(key, []).append(values)
    result = []
    for name, outcome in prepared.outcomes.items():
        metrics = {
            (information, by): held_out_metric(outcome, prepared.episodes, rows, values)
            for (of, information, by), values in scores.items()
            if of == name
        }
        for by in BASELINES:
            metrics[DIFFERENCE, by] = _difference(metrics[BOOKKEEPING, by], metrics[INDICATION, by])
        subject = prepared.episodes["subject_id"].to_numpy()[labelled_rows(outcome, rows)]
        named = {f"{information}/{by}": metric for (information, by), metric in metrics.items()}
        measured = intervals(named, subject, replicates=config.evaluation.replicates, seed=config.seed)
        values_of: dict[str, dict[str, Interval]] = {}
        for label, value in measured.items():
            information, _, by = label.partition("/")
            values_of.setdefault(information, {})[by] = value
        result.append(
            Bookkeeping(
                outcome=name,
                metric=headline(outcome, prepared.episodes, rows),
                chance=CHANCE[outcome.kind],
                values=values_of,
            )
        )
    return result, list(caps.values())


def _difference(first: WeightedMetric, second: WeightedMetric) -> WeightedMetric:
    return lambda weights: first(weights) - second(weights)


def _permutation_section(audit: Audit) -> Iterable[Section]:
    if not audit.permutations:
        return
    rows: list[dict[str, Cell]] = [
        {
            "outcome": found.outcome,
            "by": found.scorer,
            "metric": metric_label(found.metric),
            "sound": f"{found.chance:.3f}",
            "mean and sd": MeanSd(found.mean, found.sd),
            "each permutation": " ".join(f"{value:.3f}" for value in found.values),
            "verdict": "LEAK" if found.leaks else "no leak seen",
        }
        for found in audit.permutations
    ]
    reading = (
        "Outcomes were dealt out anew among subjects and everything was fitted again, so nothing is left to predict. A "
        "mean clearly above the sound value (lower 99% bound) says that information about labels leaks into features "
        "or evaluation. A feature made from the true outcome beforehand is not seen here."
    )
    leaks = [warning for warning in audit.warnings if "permuted" in warning]
    yield Section(title="Label permutation", rows=rows, notes=[*leaks, reading, f"On {audit.conditions}."])


def _bookkeeping_section(audit: Audit) -> Iterable[Section]:
    if not audit.bookkeeping:
        return
    rows: list[dict[str, Cell]] = [
        {"outcome": found.outcome, "from": information, "metric": metric_label(found.metric), **values}
        for found in audit.bookkeeping
        for information, values in found.values.items()
    ]
    warnings = [_bookkeeping_warning(found) for found in audit.bookkeeping if found.warns]
    cuts = [f"{cap.group} ({cap.subjects:,} subjects with exactly {cap.events} events)" for cap in audit.caps]
    reading = (
        "Bookkeeping is the number and timing of past events and samples: no code, value, omics or treatment. "
        f"{'' if warnings else f'It is not above the indication alone by more than {MARGIN:g} (lower 95% bound): no '}"
        f"{'' if warnings else 'sign that an outcome was made by how the source was cut.'}"
    )
    notes = [*warnings, reading.strip()]
    notes += [f"Tables that look cut in the source: {'; '.join(cuts)}."] if cuts else []
    yield Section(title="Bookkeeping", rows=rows, notes=notes)


def _bookkeeping_warning(found: Bookkeeping) -> str:
    by, difference = max(found.values[DIFFERENCE].items(), key=lambda item: item[1].low)
    alone, indication = found.values[BOOKKEEPING][by], found.values[INDICATION][by]
    best = max((value.estimate for value in found.values[FULL].values()), default=float("nan"))
    share = (alone.estimate - found.chance) / (best - found.chance) if best > found.chance else float("nan")
    of_full = f", {share:.0%} of what the full information adds to chance" if np.isfinite(share) else ""
    return (
        f"{found.outcome}: bookkeeping alone reaches {metric_label(found.metric)} {alone.estimate:.3f} ({by})"
        f"{of_full}; the indication alone {indication.estimate:.3f}, lower by at least "
        f"{difference.low:.3f}. Either sicker patients simply have more events, or the outcome is an artefact of how "
        "the source was cut or followed up: check that it does not come from a table that was cut before believing "
        "any model of it."
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
