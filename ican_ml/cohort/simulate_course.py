"""Courses of disease in the simulated cohort: lines of therapy, response, progression and death.

In: `Tumours` (what the drug meets) and the subjects' frailty; out: `Course`, arrays [N subjects, 3 lines] on a clock
in days from the start of the first line. The equations stand in `ican_ml.cohort.simulate`.

A line starts only if the subject is alive and under observation. Treatment is confounded: the log weight of a drug is
its preference in the indication, plus a term in the subject's frailty, plus a small one for an altered target, minus
a large one for drugs used before. One line in eight is a pair of drugs of two classes, in fitter subjects more often.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ican_ml.cohort import simulate_world as world_
from ican_ml.cohort.simulate_omics import Tumours
from ican_ml.cohort.simulate_world import CLASSES, DRUGS, RESISTANCE, TARGET_GENES, World

MAX_LINES = 3
_CLASS_OF_DRUG = np.array([CLASSES.index(drug.atc) for drug in DRUGS])


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """Latent health of N subjects. `reserve` (nutrition, marrow) and `inflammation` are linear in time, with a step
    when a line ends: the level at day t is start + slope * t / 365 + steps so far."""

    frailty: NDArray[np.float64]
    reserve: NDArray[np.float64]  # [N, 2] start, slope a year
    inflammation: NDArray[np.float64]  # [N, 2]
    prior_lines: NDArray[np.int64]  # cytotoxic courses before the first line

    def levels(
        self, day: NDArray[np.float64], subject: NDArray[np.int64], end: NDArray[np.float64], step: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Reserve and inflammation of `subject` [k] at `day` [k]; `end`, `step` [N, 3] are line ends and steps."""
        moved = np.where(end[subject] < day[:, None], step[subject], 0.0).sum(axis=1)
        reserve = self.reserve[subject, 0] + self.reserve[subject, 1] * day / 365.0 + moved
        inflamed = self.inflammation[subject, 0] + self.inflammation[subject, 1] * day / 365.0 - moved
        return reserve, inflamed

    def fitness(
        self, reserve: NDArray[np.float64], inflammation: NDArray[np.float64], subject: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Fitness F for treatment: level of reserve and inflammation, and where they are heading."""
        trend = self.reserve[subject, 1] - self.inflammation[subject, 1]
        return np.asarray(0.6 * reserve - 0.5 * inflammation + 0.2 * trend)


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """What happened. [N, 3] unless said otherwise; rows of lines that never started are False in `started`."""

    started: NDArray[np.bool_]
    start: NDArray[np.float64]
    end: NDArray[np.float64]  # progression, inf if none was seen
    step: NDArray[np.float64]  # change of reserve (and of minus inflammation) at `end`
    regimen: NDArray[np.bool_]  # [N, 3, D]
    response: NDArray[np.bool_]
    fitness: NDArray[np.float64]
    record_term: NDArray[np.float64]  # what record, indication and line add to the logit
    sensitivity: NDArray[np.float64]  # [N, 3, D]
    death: NDArray[np.float64]  # [N] day of death, seen or not
    last: NDArray[np.float64]  # [N] end of observation: death or censoring
    acquired: NDArray[np.int64]  # [N] mutation column gained under the first line, -1 none
    second_sample: NDArray[np.float64]  # [N] day of the second biopsy, NaN none


def draw_health(n: int, rng: np.random.Generator) -> Health:
    """Latent health of n subjects."""
    frailty = rng.normal(size=n)
    noise = rng.normal(size=(n, 4))
    reserve = np.stack([-0.6 * frailty + 0.8 * noise[:, 0], -0.1 + 0.5 * noise[:, 1]], axis=1)
    inflammation = np.stack([0.6 * frailty + 0.8 * noise[:, 2], 0.1 + 0.5 * noise[:, 3]], axis=1)
    prior = rng.binomial(3, expit(-1.0 + 0.3 * frailty))
    return Health(frailty=frailty, reserve=reserve, inflammation=inflammation, prior_lines=prior)


def drug_sensitivity(
    mutation: NDArray[np.bool_], cnv: NDArray[np.float32], expression_z: NDArray[np.float64], world: World
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Sensitivity S [N, D] in [0, 1) of each tumour to each drug, and whether a target of it is altered [N, D]."""
    column = {gene: i for i, gene in enumerate(TARGET_GENES)}
    mutated = mutation[:, world.positions(TARGET_GENES, "mutation")]
    gain = expit(world_.AMPLIFICATION_SLOPE * (cnv[:, world.positions(TARGET_GENES, "cnv")] - world_.AMPLIFICATION_CUT))
    altered = 1.0 - (1.0 - mutated) * (1.0 - gain)
    expressed = expit(
        world_.EXPRESSION_SLOPE * expression_z[:, world.positions(TARGET_GENES)] + world_.EXPRESSION_SHIFT
    )
    dependence = altered * expressed
    resistant = {atc: mutation[:, world.positions(genes, "mutation")].any(axis=1) for atc, genes in RESISTANCE.items()}
    sensitivity, hit = np.empty((len(mutation), len(DRUGS))), np.empty((len(mutation), len(DRUGS)), dtype=bool)
    for d, drug in enumerate(DRUGS):
        genes = [column[gene] for gene in drug.targets]
        kept = 1.0 - world_.RESISTANCE_LOSS * resistant[drug.atc]
        sensitivity[:, d] = dependence[:, genes].max(axis=1) * kept
        hit[:, d] = (altered[:, genes] > 0.5).any(axis=1)
    return sensitivity, hit


def regimen_sensitivity(sensitivity: NDArray[np.float64], regimen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """S of a set of drugs, [..., D] x [..., D] -> [...]: 1 - prod(1 - S_d), independent action (Bliss 1939)."""
    return np.asarray(1.0 - np.where(regimen, 1.0 - sensitivity, 1.0).prod(axis=-1))


def response_probability(
    sensitivity: NDArray[np.float64], fitness: NDArray[np.float64], other: NDArray[np.float64]
) -> NDArray[np.float64]:
    """P(response) = expit(a + b * S * gate(F) + other), elementwise."""
    gate = expit(world_.GATE_SLOPE * fitness + world_.GATE_SHIFT)
    return np.asarray(expit(world_.INTERCEPT + world_.SENSITIVITY_EFFECT * sensitivity * gate + other))


def prognosis(tumours: Tumours, world: World) -> NDArray[np.float64]:
    """Log hazard of death from the prognostic genes, [N]."""
    out = np.zeros(len(tumours.mutation))
    for gene, effect in world_.PROGNOSTIC_MUTATION.items():
        out += effect * tumours.mutation[:, world.positions((gene,), "mutation")[0]]
    for gene, effect in world_.PROGNOSTIC_EXPRESSION.items():
        out += effect * tumours.expression_z[:, world.positions((gene,))[0]]
    for gene, effect in world_.PROGNOSTIC_CNV.items():
        out += effect * tumours.cnv[:, world.positions((gene,), "cnv")[0]]
    return out


def simulate_course(
    world: World,
    tumours: Tumours,
    health: Health,
    indication: NDArray[np.int64],
    horizon: NDArray[np.float64],
    rng: np.random.Generator,
) -> Course:
    """Run up to three lines for each subject. `horizon` [N]: days from the first line to the end of the study."""
    n, drugs = len(indication), len(DRUGS)
    effect_of_drug, indication_effect = world.drug_effect, np.asarray(world_.INDICATION_EFFECT)[indication]
    fill = {name: np.zeros((n, MAX_LINES)) for name in ("start", "step", "fitness", "record_term")}
    started, response = np.zeros((n, MAX_LINES), dtype=bool), np.zeros((n, MAX_LINES), dtype=bool)
    end = np.full((n, MAX_LINES), np.inf)
    regimen = np.zeros((n, MAX_LINES, drugs), dtype=bool)
    sensitivity = np.zeros((n, MAX_LINES, drugs))
    used = np.zeros((n, drugs), dtype=bool)
    acquired = np.full(n, -1)
    censored = np.minimum(horizon, rng.exponential(2600.0, n) + 30.0)
    hazard = np.exp(prognosis(tumours, world) + 0.35 * health.frailty) / 900.0
    rebiopsied = rng.random(n) < 0.10
    mutation, death = tumours.mutation.copy(), np.full(n, np.inf)
    now, active, everyone = np.zeros(n), np.ones(n, dtype=bool), np.arange(n)
    for line in range(MAX_LINES):
        reserve, inflamed = health.levels(now, everyone, end, fill["step"])
        fitness = health.fitness(reserve, inflamed, everyone)
        sensitive, hit = drug_sensitivity(mutation, tumours.cnv, tumours.expression_z, world)
        chosen = _choose(world, indication, health.frailty, hit, used, rng)
        other = (
            world_.FITNESS_EFFECT * fitness
            + world_.PRIOR_EFFECT * health.prior_lines
            + world_.LINE_EFFECT * line
            + indication_effect
        )
        mean_effect = (chosen * effect_of_drug).sum(axis=1) / chosen.sum(axis=1)
        probability = response_probability(regimen_sensitivity(sensitive, chosen), fitness, other + mean_effect)
        responded = rng.random(n) < probability
        duration = 25.0 + np.where(responded, 330.0, 85.0) * rng.weibull(1.4, n)
        to_death = 2.0 + rng.exponential(1.0, n) / (hazard * np.exp(-0.8 * responded + 0.25 * line))
        progressed = active & (now + duration < np.minimum(now + to_death, censored))
        goes_on = progressed & (rng.random(n) < (0.82, 0.72, 0.0)[line])
        gap = rng.integers(7, 29, n)
        death = np.where(active, now + to_death, death)
        started[:, line], regimen[:, line], sensitivity[:, line] = active, chosen & active[:, None], sensitive
        response[:, line] = responded & active
        fill["start"][:, line], fill["fitness"][:, line], fill["record_term"][:, line] = now, fitness, other
        end[:, line] = np.where(progressed, now + duration, np.inf)
        fill["step"][:, line] = np.where(progressed, np.where(responded, 0.05, -0.25), 0.0)
        if line == 0:
            acquired = _acquire(world, chosen, rebiopsied, rng)
            gained = np.flatnonzero(acquired >= 0)
            mutation[gained, acquired[gained]] = True
        used |= chosen
        now = np.where(goes_on, np.ceil(now + duration) + gap, now)
        active = goes_on & (now < np.minimum(death, censored) - 1.0)
    last = np.minimum(death, censored)
    second = np.where(started[:, 1], fill["start"][:, 1] - 5.0, np.floor(0.6 * last) + 1.0)
    return Course(
        started=started, end=end, regimen=regimen, response=response, sensitivity=sensitivity, death=death, last=last,
        acquired=acquired, second_sample=np.where(rebiopsied & (second < last), second, np.nan), **fill,
    )  # fmt: skip


def _choose(
    world: World,
    indication: NDArray[np.int64],
    frailty: NDArray[np.float64],
    hit: NDArray[np.bool_],
    used: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """One or two drugs for each subject, bool [N, D], by the Gumbel-max rule on the log weights."""
    weight = world.drug_weight[indication] + world.drug_frailty * frailty[:, None] + 0.5 * hit - 4.0 * used
    weight = weight + rng.gumbel(size=weight.shape)
    first = weight.argmax(axis=1)
    rows = np.arange(len(first))
    weight[_CLASS_OF_DRUG[first][:, None] == _CLASS_OF_DRUG] = -np.inf
    pair = rng.random(len(first)) < expit(-2.0 - 0.5 * frailty)
    chosen = np.zeros(weight.shape, dtype=bool)
    chosen[rows, first] = True
    chosen[rows[pair], weight.argmax(axis=1)[pair]] = True
    return chosen


def _acquire(
    world: World, chosen: NDArray[np.bool_], rebiopsied: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Mutation column gained under the first line by 60% of the re-biopsied: a resistance gene of the drug's class."""
    table = np.stack([world.positions((RESISTANCE[atc] * 2)[:2], "mutation") for atc in CLASSES])
    pick = table[_CLASS_OF_DRUG[chosen.argmax(axis=1)], rng.integers(0, 2, len(chosen))]
    return np.where(rebiopsied & (rng.random(len(chosen)) < 0.6), pick, -1)
