"""Label permutation: with outcomes dealt out at random nothing is left to predict, so that whatever a held-out metric
keeps above chance is information about labels that leaked into features or evaluation.

In: a prepared cohort. Out: :class:`Permutations`, the metric under each permutation. Every permutation starts from the
episodes table and fits everything again: schema, vocabulary, statistics, then the scorer. (Permutation tests of a whole
learning procedure: Ojala and Garriga, JMLR 11:1833, 2010, test 1: labels against complete rows.)

Subjects have several episodes, and different numbers of them; outcomes of one subject resemble each other. So subjects
are dealt, not rows. Exchanging subjects of equal size alone would keep how outcomes depend on the number of episodes,
which features tell. Instead the labelled rows are laid on a circle, subjects in random order; their outcomes on a
second one, subjects in another random order; and the second is turned by a random angle. Each row then gets every
outcome with the same chance, whatever its subject; outcomes of one subject stay neighbours, as far as sizes allow; and
what is dealt is independent of all else in the cohort. The number of outcomes of each kind does not change.
(Exchangeable blocks: Winkler et al., NeuroImage 123:253, 2015.) Where a split parts the rows of a subject, what its
training rows tell of the held-out ones is meant to be used, so rows are dealt, not subjects.

The estimate is unbiased because folds are averaged (see :mod:`ican_ml.audit.measure`). The spread over permutations
holds what else moves it: few held-out rows, and their clustering by subject.

What it cannot see: a feature that was made from the true outcome before the permutation. That is for :mod:`bookkeeping
<ican_ml.audit.bookkeeping>`, and for the eye.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ican_ml.audit.measure import CHANCE, headline, held_out_metric, labelled_rows
from ican_ml.cohort.split import Split
from ican_ml.config import RunConfig
from ican_ml.evaluation.baselines import BASELINES
from ican_ml.evaluation.outcome import FloatArray, IntArray
from ican_ml.fold import Prepared, baseline_scores, fit_fold, network_scores
from ican_ml.training.loop import fit
from ican_ml.training.outcomes import read_outcomes

LINEAR, NETWORK = "linear path", "network"
SCORERS = (*BASELINES, LINEAR, NETWORK)
_CONFIDENCE = 0.99


@dataclass(frozen=True, kw_only=True, slots=True)
class Permutations:
    """The metric of one scorer on held-out rows under each permutation of an outcome.

    Attributes
    ----------
    chance
        What a sound pipeline gives: 0.5 (AUROC, c-index) or 0 (r).
    values
        One a permutation, folds averaged.
    """

    outcome: str
    scorer: str
    metric: str
    chance: float
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over permutations."""
        return float(np.mean(self.values))

    @property
    def sd(self) -> float:
        """Sample standard deviation over permutations."""
        return float(np.std(self.values, ddof=1))

    @property
    def lower(self) -> float:
        """One-sided 99% bound of the mean (Student's t): a sound pipeline is above chance once in a hundred audits."""
        from scipy.stats import t

        n = len(self.values)
        return self.mean - float(t.ppf(_CONFIDENCE, n - 1)) * self.sd / float(np.sqrt(n))

    @property
    def leaks(self) -> bool:
        """Whether the excess over chance is clear."""
        return self.lower > self.chance


def audit_permutations(config: RunConfig, prepared: Prepared, scorer: str, count: int) -> list[Permutations]:
    """Permute, refit and evaluate on every split of ``prepared``; one entry an outcome.

    Parameters
    ----------
    scorer
        One of `SCORERS`. "linear path" is the network without all else; "network" trains it as a run does.
    count
        Permutations, at least 2. Number ``k`` depends on the seed of ``config`` and ``k`` alone.

    Raises
    ------
    ValueError
        If the scorer is unknown, there are fewer than 2 permutations, or the cohort cannot be fitted.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    if scorer not in SCORERS:
        raise ValueError(f"scorer: expected one of {', '.join(SCORERS)}, got {scorer!r}")
    if count < 2:
        raise ValueError(f"permutations: expected at least 2, got {count}")
    rows = [split.held_out for split in prepared.splits.values()]
    values: dict[str, list[float]] = {name: [] for name in prepared.outcomes}
    for number in tqdm(range(count), disable=None, unit="permutation", desc=scorer):
        permuted = permute(prepared, seed=(config.seed, number))
        scores = [_score(config, permuted, split, scorer) for split in permuted.splits.values()]
        for name, outcome in permuted.outcomes.items():
            metric = held_out_metric(outcome, permuted.episodes, rows, [fold[name] for fold in scores])
            values[name].append(float(metric(np.ones((len(labelled_rows(outcome, rows)), 1)))[0]))
    return [
        Permutations(
            outcome=name,
            scorer=scorer,
            metric=headline(outcome, prepared.episodes, rows),
            chance=CHANCE[outcome.kind],
            values=tuple(values[name]),
        )
        for name, outcome in prepared.outcomes.items()
    ]


def permute(prepared: Prepared, *, seed: tuple[int, ...]) -> Prepared:
    """The cohort with each outcome dealt out anew among the episodes that have one; all columns of it move together."""
    episodes = prepared.episodes
    subject = episodes["subject_id"].to_numpy()
    if any(np.isin(subject[split.held_out], subject[split.train]).any() for split in prepared.splits.values()):
        subject = np.arange(len(episodes))
    for position, (name, outcome) in enumerate(prepared.outcomes.items()):
        rows = np.flatnonzero(outcome.labelled)
        source = np.arange(len(episodes))
        source[rows] = rows[deal(subject[rows], np.random.default_rng([*seed, position]))]
        columns = [name] if outcome.kind != "survival" else [f"{name}_{part}" for part in ("time", "event", "entry")]
        episodes = episodes.with_columns(
            episodes[column].gather(source) for column in columns if column in episodes.columns
        )
    kinds = {name: outcome.kind for name, outcome in prepared.outcomes.items()}
    return replace(prepared, episodes=episodes, outcomes=read_outcomes(episodes, kinds))


def deal(subject: IntArray, rng: np.random.Generator) -> IntArray:
    """A permutation of rows that keeps subjects together: row ``i`` gets what row ``deal(...)[i]`` had.

    Parameters
    ----------
    subject
        int64 [rows].
    """
    _, number = np.unique(subject, return_inverse=True)

    def circle() -> IntArray:
        order = rng.permutation(int(number.max(initial=-1)) + 1)
        return np.argsort(order[number], kind="stable")

    source = np.empty(len(subject), np.int64)
    source[circle()] = np.roll(circle(), int(rng.integers(max(len(subject), 1))))
    return source


def _score(config: RunConfig, prepared: Prepared, split: Split, scorer: str) -> dict[str, FloatArray]:
    """Fit everything from the schema on; scores of the held-out rows by outcome."""
    fold = fit_fold(config, prepared, split)
    if scorer in BASELINES:
        found = baseline_scores(config, prepared, fold, split, (scorer,))
        return {name: scores[scorer] for name, scores in found.items()}
    train, tuning = fold.data(prepared.outcomes, split.train, split.tuning)
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(
            fold.schema,
            train,
            tuning,
            subject=fold.states.subject_id,
            model=config.model if scorer == NETWORK else replace(config.model, deep=False, trees=0, landmarks=0),
            training=config.training,
            trainer=config.trainer,
            folder=Path(folder),
            seed=config.seed,
        )
    return network_scores(fitted.network, fold, split.held_out)
