"""The whole table: complete, the same again, of no subject; and what the command prints."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ican_ml.cli import main
from ican_ml.cohort.cohort import Cohort
from ican_ml.evaluation.outcome import Outcome
from ican_ml.targets.discover import COLUMNS, NETWORK_COLUMNS, discover
from ican_ml.targets.inhibition import Inhibition
from ican_ml.targets.observations import Observations
from ican_ml.training.outcomes import read_outcomes


@pytest.fixture(scope="module")
def table(observed: Observations) -> pl.DataFrame:
    return discover(observed, permutations=20)


def test_every_gene_of_every_common_drug_has_a_rank(table: pl.DataFrame, sim_cohort: Cohort) -> None:
    by_modality = [f"{part}:{name}" for part in ("z", "elsewhere") for name in sim_cohort.modalities]
    assert table.columns == ["drug", *COLUMNS, *by_modality]
    genes = {gene for m in sim_cohort.modalities.values() for gene in m.genes}
    for (_drug,), part in table.partition_by("drug", as_dict=True).items():
        assert set(part["gene"]) == genes
        assert sorted(part["rank"]) == list(range(1, len(genes) + 1))
    counts = dict(table.select("drug", "episodes").unique().iter_rows())
    listed = sim_cohort.episodes.explode("treatment")["treatment"].value_counts()
    assert counts == {drug: n for drug, n in listed.iter_rows() if n >= 20}
    known = table.filter(pl.col("known")).select("drug", "gene").rows()
    assert set(known) == {(drug, gene) for drug in counts for gene in sim_cohort.targets[drug] if gene in genes}
    leads = table.filter(pl.col("q").is_not_null())
    assert (leads["lead"] == leads["gene"]).all()


def test_it_is_the_same_again_and_in_any_order(table: pl.DataFrame, sim_cohort: Cohort, observed: Observations) -> None:
    assert discover(observed, permutations=20).equals(table)
    turned = replace(sim_cohort, episodes=sim_cohort.episodes.reverse())
    outcome = read_outcomes(turned.episodes, {"response": "binary"})["response"]
    again = discover(Observations.of(turned, outcome), permutations=20).sort("drug", "gene")
    expected = table.sort("drug", "gene")
    for name in ("z", "elsewhere", "effect", "interaction"):
        np.testing.assert_allclose(again[name].to_numpy(), expected[name].to_numpy(), rtol=1e-4, atol=1e-4)


def test_a_planted_target_is_found(sim_cohort: Cohort) -> None:
    mutation = sim_cohort.modalities["mutation"]
    counts = np.bincount(mutation.matrix.indices, minlength=len(mutation.genes))
    gene = mutation.genes[int(counts.argmax())]
    carriers = set(mutation.subject_id[mutation.matrix.row_ids()[mutation.matrix.indices == counts.argmax()]].tolist())
    subject = sim_cohort.episodes["subject_id"].to_list()
    drug = sim_cohort.episodes.explode("treatment")["treatment"].mode().sort()[0]
    has = [drug in treatment for treatment in sim_cohort.episodes["treatment"].to_list()]
    rng = np.random.default_rng(0)
    value = [
        float(rng.random() < (0.95 if has_it and s in carriers else 0.2))
        for s, has_it in zip(subject, has, strict=True)
    ]
    found = discover(Observations.of(sim_cohort, Outcome.binary(value)), permutations=100)
    found = found.filter(pl.col("drug") == drug)
    best = found.sort("z", descending=True, nulls_last=True)
    assert gene in best["gene"].head(5)
    row = found.filter(pl.col("gene") == gene)
    assert row["z"][0] > row["elsewhere"][0] + 2
    assert row["interaction"][0] > 3  # predictive: under this drug alone
    assert row["interaction_q"][0] < 0.1 < row["prognosis_q"][0]
    assert 0.4 < row["effect"][0] < 1.0
    assert row["effect_low"][0] < row["effect"][0] < row["effect_high"][0]
    assert row["stability"][0] > 10 * found["stability"].mean()
    assert row["modality"][0] == "mutation"


def test_what_virtual_inhibitors_tell_is_one_more_line(observed: Observations, table: pl.DataFrame) -> None:
    drug = observed.names[observed.often[0]]
    rows, gene = observed.rows(observed.often[0]), 17
    rng = np.random.default_rng(1)
    predicted = rng.normal(size=(len(observed.benefit), len(observed.genes))).astype(np.float32)
    predicted[rows, gene] += 20 * observed.benefit[rows]
    network_of = dict.fromkeys(observed.names, 0)
    inhibition = Inhibition(benefit={0: predicted}, network_of=network_of, patient=np.arange(len(predicted)))
    found = discover(observed, permutations=20, inhibition=inhibition)
    assert set(NETWORK_COLUMNS) < set(found.columns)
    row = found.filter((pl.col("drug") == drug) & (pl.col("gene") == observed.genes[gene]))
    assert row["inhibition_p"][0] < 0.01
    assert row["inhibition"][0] == found.filter(pl.col("drug") == drug)["inhibition"].max()
    before = table.filter((pl.col("drug") == drug) & (pl.col("gene") == observed.genes[gene]))
    assert row["rank"][0] < before["rank"][0]
    assert row["z"][0] == pytest.approx(before["z"][0], rel=1e-6)


def test_drugs_of_a_class_are_asked_together(sim_cohort: Cohort, response: Outcome) -> None:
    found = discover(Observations.of(sim_cohort, response, by="class"), permutations=1)
    episodes = dict(found.select("class", "episodes").unique().iter_rows())
    classes = {drug: sim_cohort.classes[drug] for drug in sim_cohort.targets}
    given = [{classes[drug] for drug in treatment} for treatment in sim_cohort.episodes["treatment"].to_list()]
    assert episodes == {name: n for name in sorted(set(classes.values())) if (n := sum(name in g for g in given)) >= 20}
    known = found.filter((pl.col("class") == classes["EGF-101"]) & pl.col("known"))["gene"].to_list()
    alike = [drug for drug, drug_class in classes.items() if drug_class == classes["EGF-101"]]
    assert sorted(known) == sorted({gene for drug in alike for gene in sim_cohort.targets[drug]})


def test_the_command_writes_and_prints(simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "targets.parquet"
    lists = tmp_path / "lists.csv"
    lists.write_text("gene,list\nKRAS,driver\nKRAS,essential\nEGFR,driver\n")
    asked = ["--permutations", "5", "--level", "0.9999", "--lists", str(lists)]
    main(["targets", str(simulated), "--out", str(out), *asked])
    printed = capsys.readouterr().out
    assert "altered benefit more" in printed
    assert "false discovery rate of 0.9999" in printed
    found = pl.read_parquet(out)
    assert tuple(found.columns[: len(COLUMNS) + 1]) == ("drug", *COLUMNS)
    assert set(found.filter(pl.col("gene") == "KRAS")["lists"]) == {"driver, essential"}
    page = out.with_suffix(".html").read_text()
    assert "<svg" in page
    subjects = pl.read_parquet(simulated / "episodes.parquet")["subject_id"].cast(pl.String)
    assert not [subject for subject in subjects if f">{subject}<" in page]
    lists.write_text("symbol,list\n")
    wrongs = (["--out", str(tmp_path / "a.csv")], [], ["--out", str(out), "--level", "2"])
    for wrong in (*wrongs, ["--out", str(out), "--permutations", "1", "--lists", str(lists)]):
        with pytest.raises(SystemExit, match="expected"):
            main(["targets", str(simulated), *wrong])
    with pytest.raises(SystemExit, match="expected the folder of a run"):
        main(["targets", str(tmp_path)])


def test_without_omics_or_treatments_it_says_so(sim_cohort: Cohort, response: Outcome) -> None:
    with pytest.raises(ValueError, match="expected a cohort with omics"):
        Observations.of(replace(sim_cohort, modalities={}), response)
    few = replace(sim_cohort, episodes=sim_cohort.episodes.head(15))
    with pytest.raises(ValueError, match="expected a drug with 20 labelled episodes"):
        discover(Observations.of(few, response.take(np.arange(15))))
