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
import torch

from ican_ml.cohort.cohort import Cohort
from ican_ml.cohort.split import Split
from ican_ml.config import RunConfig
from ican_ml.evaluation.baselines import BaselineConfig, fit_baselines
from ican_ml.evaluation.bootstrap import Interval
from ican_ml.evaluation.design import Design
from ican_ml.evaluation.outcome import Outcome
from ican_ml.fitting import fit_stage
from ican_ml.fold import Fold, Prepared, encode_fold
from ican_ml.inputs.encode import OmicsRows
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.release import load_fitted
from ican_ml.results import MODEL, Scores, evaluate_scores
from ican_ml.run_folder import RunFolder, Stage
from ican_ml.targets.alteration import CHANGES, alter
from ican_ml.targets.asking import as_batch, device_of, own_regimen
from ican_ml.targets.attribution import COMPLETE, attribute
from ican_ml.targets.discover import discover
from ican_ml.targets.inhibition import Inhibition, virtual_inhibition
from ican_ml.targets.lists import with_lists
from ican_ml.targets.observations import By, Observations
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
    return Observations.of(_cohort(prepared), _outcome(prepared), by=_by(config)).check()


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
    table = table.join(_network_lines(config, prepared, observed, fitted, genes), on=[observed.by, "gene"], how="left")
    table = with_lists(table, settings.lists)
    table.write_parquet(folder.root / TABLE)
    panel = _panel_of(config, prepared, np.arange(len(prepared.episodes)))
    worth = _panel_worth(config, prepared, fitted, scores)
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


def _network_lines(
    config: RunConfig, prepared: Prepared, observed: Observations, fitted: Mapping[str, Stage], genes: Sequence[str]
) -> pl.DataFrame:
    """Attribution and alteration, by drug and gene, of held-out episodes under the run's own networks."""
    drawn = _drawn(config, prepared, observed)
    gradients: list[Float64] = []
    changes: list[Float64] = []
    worst = 0.0
    place = {gene: g for g, gene in enumerate(observed.genes)}
    for name, rows in drawn.items():
        network, schema = _network(config, fitted[name])
        fold = encode_fold(config, prepared, schema)
        found = _explain(network, fold, rows, genes)
        known = [gene for gene in schema.genes if gene in place]
        by_gene = np.full((len(rows), len(observed.genes)), np.nan)
        by_gene[:, [place[gene] for gene in known]] = np.abs(
            found.gradient[:, [schema.gene_id[gene] for gene in known]]
        )
        gradients.append(by_gene)
        changes.append(np.stack([found.change[change] for change in CHANGES], axis=-1))
        worst = max(worst, float(found.error.max(initial=0.0)))
    if worst > COMPLETE:
        _log.warning("attribution: complete to %.1f%% in the worst patient, wanted %.0f%%", 100 * worst, 100 * COMPLETE)
    rows = np.concatenate(list(drawn.values()))
    gradient, change = np.concatenate(gradients), np.concatenate(changes)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Explained:
    """Of N episodes: integrated gradients [N, schema's genes] with their error [N], and changes [N, G]."""

    gradient: Float64
    error: Float64
    change: Mapping[str, npt.NDArray[np.float32]]


def _explain(network: PatientTransformer, fold: Fold, rows: Int64, genes: Sequence[str]) -> _Explained:
    """Attribution and alteration of some episodes under a network."""
    states, schema = fold.states, fold.schema
    patient, slot = states.patient[rows], states.slot[rows]
    pieces = [slice(start, start + _BATCH) for start in range(0, len(rows), _BATCH)]
    device = device_of(network)
    batches = [as_batch(own_regimen(fold.encoded, patient[piece], slot[piece]), device) for piece in pieces]
    found = attribute(network, schema, batches)
    omics = {
        name: OmicsRows(matrix=m.matrix.take(patient), panel=m.panel[patient])
        for name, m in fold.encoded.modalities.items()
    }
    regimens = [states.patients.regimens[p][s] for p, s in zip(patient.tolist(), slot.tolist(), strict=True)]
    arrays = own_regimen(fold.encoded, patient, slot)
    change = alter(network, schema, arrays, omics, regimens, genes)
    return _Explained(gradient=found.gene, error=found.error, change=change)


def _drawn(config: RunConfig, prepared: Prepared, observed: Observations) -> dict[str, Int64]:
    """By fold, held-out labelled episodes, as many in all as are wanted."""
    rng = np.random.default_rng([config.seed, 4])
    each = -(-config.targets.patients // len(prepared.splits))
    found = {}
    for name, split in prepared.splits.items():
        labelled = split.held_out[np.isfinite(observed.benefit[split.held_out])]
        found[name] = np.sort(rng.permutation(labelled)[:each])
    return found


def _panel_worth(
    config: RunConfig,
    prepared: Prepared,
    fitted: Mapping[str, Stage],
    scores: Sequence[Scores],
) -> dict[str, dict[str, Interval]]:
    """The panel beside regimen and indication alone and beside the full model, on the same held-out episodes."""
    task = config.task.outcomes[0].name
    outcome, every = prepared.outcomes[task], np.arange(len(prepared.episodes))
    observed = Observations.of(_cohort(prepared), outcome, by=_panel_by(prepared))
    compared = []
    for fold in scores:
        split = prepared.splits[fold.name]
        panel = _panel_of(config, prepared, np.concatenate([split.train, split.tuning]))
        encoded = encode_fold(config, prepared, load_fitted(fitted[fold.name].folder)[1])
        design = baseline_design(encoded.schema, encoded.encoded, encoded.states, prepared.episodes)
        columns = panel_columns(observed, every, panel)
        arrays = {
            f"{task}/{name}": _ridge(config, replace(design, omics={}, summary=summary), outcome, split)
            for name, summary in (("panel", columns), ("regimen and indication", columns[:, :0]))
        }
        arrays[f"{task}/{MODEL}"] = fold.arrays[f"{task}/{MODEL}"]
        compared.append(replace(fold, arrays=arrays, calibration={}))
    found = evaluate_scores(
        task, outcome, prepared.episodes, compared, replicates=config.evaluation.replicates, seed=config.seed
    )
    return {scorer: dict(metrics.overall.metrics) for scorer, metrics in found.pooled.items()}


def _panel_of(config: RunConfig, prepared: Prepared, rows: Int64) -> tuple[Marker, ...]:
    """The panel that some episodes choose; the outcomes of others are not looked at."""
    known = np.zeros(len(prepared.episodes), bool)
    known[rows] = True
    outcome = _outcome(prepared)
    masked = replace(outcome, value=np.where(known, outcome.value, np.nan))
    return choose_panel(Observations.of(_cohort(prepared), masked, by=_panel_by(prepared)), rows, seed=config.seed)


def _ridge(config: RunConfig, design: Design, outcome: Outcome, split: Split) -> Float64:
    scores = fit_baselines(
        design,
        outcome,
        split.train,
        split.tuning,
        split.held_out,
        seed=config.seed,
        threads=torch.get_num_threads(),
        config=BaselineConfig(names=("ridge",)),
    )
    return scores["ridge"]


def _cohort(prepared: Prepared) -> Cohort:
    return replace(prepared.cohort, episodes=prepared.episodes)


def _outcome(prepared: Prepared) -> Outcome:
    return next(iter(prepared.outcomes.values()))


def _by(config: RunConfig) -> By:
    return "class" if config.targets.by == "class" else "drug"


def _panel_by(prepared: Prepared) -> By:
    """Few tell of each drug alone: the panel's markers are of classes, where these are known."""
    return "class" if prepared.cohort.classes else "drug"
