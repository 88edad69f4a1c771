"""Targets and biomarkers of a run: networks that never saw the drug in question, the run's own networks, one table.

Writes ``targets.parquet`` (:mod:`ican_ml.targets.discover` says what its columns mean) and ``targets.html`` into the
run's folder; neither names a subject. Further columns, from the run's networks on held-out patients:

    attribution                 mean absolute integrated gradient of the gene under this drug
    silenced, lost, restored    mean change of the predicted benefit if the gene were so (of the leading genes)
    lists                       which of the user's lists name the gene
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from ican_ml.cohort.cohort import Cohort
from ican_ml.cohort.split import Split
from ican_ml.config import RunConfig
from ican_ml.evaluation.bootstrap import Interval
from ican_ml.evaluation.outcome import Outcome
from ican_ml.fitting import fit_stage
from ican_ml.fold import Fold, Prepared, encode_fold, fit_on
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.release import load_fitted
from ican_ml.results import MODEL, Scores, evaluate_scores
from ican_ml.run_folder import RunFolder, Stage
from ican_ml.targets.alteration import CHANGES, alter
from ican_ml.targets.asking import as_batch, device_of, omics_of, own_regimen
from ican_ml.targets.attribution import COMPLETE, attribute
from ican_ml.targets.config import By
from ican_ml.targets.discover import discover
from ican_ml.targets.inhibition import Inhibition, virtual_inhibition
from ican_ml.targets.lists import with_lists
from ican_ml.targets.observations import Observations
from ican_ml.targets.page import Page, write_page
from ican_ml.targets.panel import Marker, choose_panel, panel_columns
from ican_ml.training.design import baseline_design

_log = logging.getLogger(__name__)
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
TABLE, PAGE = "targets.parquet", "targets.html"
_BATCH, _FEWEST = 32, 5


def observations(config: RunConfig, prepared: Prepared) -> Observations:
    """The first outcome as the lines of evidence see it.

    Raises
    ------
    ValueError
        If the cohort has no omics, or no drug with enough episodes.
    """
    return Observations.of(_cohort(prepared), _outcome(prepared), by=config.targets.choice).check()


def discover_targets(
    config: RunConfig,
    prepared: Prepared,
    observed: Observations,
    fitted: Mapping[str, Stage],
    scores: Sequence[Scores],
    folder: RunFolder,
) -> pl.DataFrame:
    """See the module docstring; returns the table."""
    settings = config.targets
    crossed = settings.networks and len(observed.often) > 1  # of one drug alone, nothing is left to learn from
    inhibition = cross_fitted_inhibition(config, prepared, observed, folder) if crossed else None
    table = discover(observed, permutations=settings.permutations, seed=config.seed, inhibition=inhibition)
    genes = table.sort("q", "rank", nulls_last=True)["gene"].unique(maintain_order=True)[: settings.genes].to_list()
    drawn = _drawn(config, prepared, observed)
    markers = Observations.of(_cohort(prepared), _outcome(prepared), by=_panel_by(prepared))
    explained, compared = [], []
    for scored in scores:
        network, schema = _network(config, fitted[scored.name])
        fold = encode_fold(config, prepared, schema)
        explained.append(_explain(network, fold, drawn[scored.name], observed, genes))
        compared.append(_with_panel(config, prepared, markers, fold, scored))
    lines = _network_lines(observed, np.concatenate(list(drawn.values())), explained, genes)
    table = table.join(lines, on=[observed.by, "gene"], how="left")
    table = with_lists(table, settings.lists)
    table.write_parquet(folder.root / TABLE)
    panel = _panel_of(config, prepared, np.arange(len(prepared.episodes)))
    worth = _panel_worth(config, prepared, compared)
    page = Page(title=config.name, table=table, observed=observed, level=settings.level, panel=panel, worth=worth)
    said = write_page(folder.root / PAGE, page)
    _log.info("targets\n\n%s\n", said)
    return table


def cross_fitted_inhibition(
    config: RunConfig, prepared: Prepared, observed: Observations, folder: RunFolder, networks: Sequence[int] = ()
) -> Inhibition:
    """Virtual inhibition of every gene by networks that each never saw their share of the drugs.

    Parameters
    ----------
    networks
        Only these of ``targets.networks``; all if none are given.
    """
    count = config.targets.networks
    dealt = np.random.default_rng([config.seed, 3]).permutation(observed.often)
    share = {observed.names[d]: place % count for place, d in enumerate(dealt.tolist())}
    simple = replace(config, model=replace(config.model, members=1), training=replace(config.training, init_from=None))
    benefit: dict[int, npt.NDArray[np.float32]] = {}
    patient = np.empty(0, np.int64)
    for k in networks or range(min(count, len(share))):
        hidden = {drug for name, network in share.items() if network == k for drug in _members(observed, name)}
        name = f"targets/{observed.by}-{k}-of-{count}"
        split = _hide(prepared, hidden)
        apart = replace(prepared, further=None, splits={name: split})
        network, schema = _network(config, fit_stage(simple, apart, folder, name))
        fold = encode_fold(simple, apart, schema)
        patient = fold.states.patient
        rows = np.unique(patient[split.held_out])
        benefit[k] = np.full((fold.encoded.n_rows, len(observed.genes)), np.nan, np.float32)
        benefit[k][rows] = virtual_inhibition(network, schema, fold.encoded, rows, observed.genes)
    return Inhibition(benefit=benefit, network_of=share, patient=patient)


def _network(config: RunConfig, fitted: Stage) -> tuple[PatientTransformer, InputSchema]:
    """A fitted network, where the run trains."""
    network, schema = load_fitted(fitted.folder)
    return network.to("cuda" if config.trainer.accelerator in ("cuda", "gpu") else "cpu"), schema


def _members(observed: Observations, name: str) -> tuple[str, ...]:
    return observed.members[observed.names.index(name)]


def _hide(prepared: Prepared, hidden: set[str]) -> Split:
    """Everything without the hidden drugs trains or, where the run tunes on it, tunes."""
    split = next(iter(prepared.splits.values()))
    treatments = prepared.episodes["treatment"].to_list()
    has = np.array([not hidden.isdisjoint(treatment or ()) for treatment in treatments], bool)
    tunes = np.zeros(len(has), bool)
    tunes[split.tuning] = True
    parts = {"train": ~has & ~tunes, "tuning": ~has & tunes, "held_out": has, "left_out": np.zeros(len(has), bool)}
    return Split(**{name: np.flatnonzero(rows).astype(np.int64) for name, rows in parts.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Explained:
    """Of N episodes: absolute integrated gradients [N, G] (NaN: unknown gene), their error [N], changes [N, g, C]."""

    gradient: Float64
    error: Float64
    change: npt.NDArray[np.float32]


def _explain(
    network: PatientTransformer, fold: Fold, rows: Int64, observed: Observations, genes: Sequence[str]
) -> _Explained:
    """Attribution and alteration of some episodes under a network; of alteration, ``genes`` alone."""
    states, schema = fold.states, fold.schema
    patient, slot = states.patient[rows], states.slot[rows]
    pieces = [slice(start, start + _BATCH) for start in range(0, len(rows), _BATCH)]
    device = device_of(network)
    batches = [as_batch(own_regimen(fold.encoded, patient[piece], slot[piece]), device) for piece in pieces]
    found = attribute(network, schema, batches)
    place = {gene: g for g, gene in enumerate(observed.genes)}
    known = [gene for gene in schema.genes if gene in place]
    gradient = np.full((len(rows), len(observed.genes)), np.nan)
    gradient[:, [place[gene] for gene in known]] = np.abs(found.gene[:, [schema.gene_id[gene] for gene in known]])
    regimens = [states.patients.regimens[p][s] for p, s in zip(patient.tolist(), slot.tolist(), strict=True)]
    arrays, omics = own_regimen(fold.encoded, patient, slot), omics_of(fold.encoded, patient)
    change = alter(network, schema, arrays, omics, regimens, genes)
    return _Explained(
        gradient=gradient, error=found.error, change=np.stack([change[name] for name in CHANGES], axis=-1)
    )


def _network_lines(
    observed: Observations, rows: Int64, explained: Sequence[_Explained], genes: Sequence[str]
) -> pl.DataFrame:
    """Attribution and alteration by drug and gene: means over the explained episodes, ``rows``, with the drug."""
    worst = max(float(each.error.max(initial=0.0)) for each in explained)
    if worst > COMPLETE:
        _log.warning("attribution: complete to %.1f%% in the worst patient, wanted %.0f%%", 100 * worst, 100 * COMPLETE)
    gradient, change = (np.concatenate([getattr(each, name) for each in explained]) for name in ("gradient", "change"))
    parts = []
    for d in observed.often:
        under = np.isin(rows, observed.rows(d))
        if under.sum() < _FEWEST:
            continue
        part = pl.DataFrame(
            {observed.by: [observed.names[d]] * len(observed.genes), "gene": observed.genes}
        ).with_columns(pl.Series("attribution", gradient[under].mean(0)).fill_nan(None))
        means = pl.DataFrame({"gene": genes} | {name: change[under][:, :, i].mean(0) for i, name in enumerate(CHANGES)})
        parts.append(part.join(means, on="gene", how="left"))
    empty = {observed.by: pl.String, "gene": pl.String} | dict.fromkeys(("attribution", *CHANGES), pl.Float64)
    return pl.concat(parts) if parts else pl.DataFrame(schema=empty)


def _drawn(config: RunConfig, prepared: Prepared, observed: Observations) -> dict[str, Int64]:
    """By fold, held-out labelled episodes, as many in all as are wanted."""
    rng = np.random.default_rng([config.seed, 4])
    each = -(-config.targets.patients // len(prepared.splits))
    found = {}
    for name, split in prepared.splits.items():
        labelled = split.held_out[np.isfinite(observed.benefit[split.held_out])]
        found[name] = np.sort(rng.permutation(labelled)[:each])
    return found


def _with_panel(config: RunConfig, prepared: Prepared, markers: Observations, fold: Fold, scored: Scores) -> Scores:
    """The model's scores of a fold, beside those of a panel and of regimen and indication alone."""
    task, split = config.task.outcomes[0].name, prepared.splits[scored.name]
    panel = _panel_of(config, prepared, np.concatenate([split.train, split.tuning]))
    design = baseline_design(fold.schema, fold.encoded, fold.states, prepared.episodes)
    columns = panel_columns(markers, np.arange(len(prepared.episodes)), panel)
    arrays = {}
    for name, summary in (("panel", columns), ("regimen and indication", columns[:, :0])):
        seen = replace(design, omics={}, summary=summary)
        arrays[f"{task}/{name}"] = fit_on(config, seen, prepared.outcomes[task], split, ("ridge",))["ridge"]
    arrays[f"{task}/{MODEL}"] = scored.arrays[f"{task}/{MODEL}"]
    return replace(scored, arrays=arrays, calibration={})


def _panel_worth(config: RunConfig, prepared: Prepared, compared: Sequence[Scores]) -> dict[str, dict[str, Interval]]:
    """By scorer, its metrics on the held-out episodes of all folds."""
    task = config.task.outcomes[0].name
    found = evaluate_scores(
        task,
        prepared.outcomes[task],
        prepared.episodes,
        compared,
        replicates=config.evaluation.replicates,
        seed=config.seed,
    )
    return {scorer: dict(metrics.overall.metrics) for scorer, metrics in found.pooled.items()}


def _panel_of(config: RunConfig, prepared: Prepared, rows: Int64) -> tuple[Marker, ...]:
    """The panel that some episodes choose; the outcomes of others are not looked at."""
    known = np.zeros(len(prepared.episodes), bool)
    known[rows] = True
    outcome = _outcome(prepared)
    masked = replace(outcome, value=np.where(known, outcome.value, np.nan))
    return choose_panel(Observations.of(_cohort(prepared), masked, by=_panel_by(prepared)), rows, seed=config.seed)


def _cohort(prepared: Prepared) -> Cohort:
    return replace(prepared.cohort, episodes=prepared.episodes)


def _outcome(prepared: Prepared) -> Outcome:
    return next(iter(prepared.outcomes.values()))


def _panel_by(prepared: Prepared) -> By:
    """Few tell of each drug alone: the panel's markers are of classes, where these are known."""
    return "class" if prepared.cohort.classes else "drug"
