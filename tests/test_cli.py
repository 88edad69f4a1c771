"""The ``ican`` command: what it prints, and that a mistake ends in one line."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

import ican_ml
from ican_ml.bundle.read import CALIBRATION, CALIBRATION_FORMAT, MANIFEST, digest
from ican_ml.cli import main
from ican_ml.cohort.cohort import Cohort, read_cohort
from ican_ml.commands import audit
from ican_ml.config import Kind, Method, OutcomeConfig, SplitConfig
from ican_ml.inputs.assemble import CohortStates, as_dictionary
from ican_ml.records.store import RecordStore
from ican_ml.serving.audit_log import AuditLog
from tests.bundle.resealed import reseal, resealed
from tests.cohort.invented_fhir import bundle, of_patient, resources


@pytest.fixture
def patient(sim_cohort: Cohort, sim_records: RecordStore, sim_states: CohortStates, tmp_path: Path) -> Path:
    path = tmp_path / "patient.json"
    path.write_text(json.dumps(as_dictionary(sim_cohort, sim_records, sim_states, 0)))
    return path


def _fails(*arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert isinstance(stopped.value.code, str)
    return stopped.value.code


def test_simulate_writes_a_cohort(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cohort"
    main(["simulate", str(out), "--subjects", "60", "--seed", "3"])
    assert read_cohort(out).episodes["subject_id"].n_unique() <= 60
    printed = capsys.readouterr().out
    assert "subjects" in printed
    assert "60" in printed
    assert "expected a new or empty folder" in _fails("simulate", out, "--subjects", 60)


def test_predict_ranks_in_a_table(sim_bundle: Path, patient: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", str(sim_bundle), str(patient), "--treatment", "RAF-101+MEK-101", "--treatment", "new"])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == "rank treatment response os sensitivity response, 95% response at 90%".split()  # noqa: SIM905
    assert sorted(row.split()[1] for row in rows[:2]) == ["MEK-101+RAF-101", "new"]
    assert sum("not seen in training" in row for row in rows) >= 1
    assert any(row.startswith("codes of the record: ") for row in rows)


def test_predict_says_what_it_cannot_rule_out(
    sim_bundle: Path, patient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (calibration,) = json.loads((sim_bundle / CALIBRATION).read_text())["tasks"]
    wide = {"format": CALIBRATION_FORMAT, "tasks": [{**calibration, "quantile": 0.9999}]}
    copy = resealed(sim_bundle, tmp_path / "bundle", calibration=wide)
    ask = ["predict", str(copy), str(patient), "--treatment", "RAF-101", "--treatment", "new"]
    main(ask)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.endswith("  response at 90%")
    assert all("  undecided" in row for row in rows[:2])
    main([*ask, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["coverage"] == {"response": 0.9}
    for ranked in answer["ranked"]:
        low, high = ranked["interval"]["response"]
        assert 0 < low < ranked["prediction"]["response"] < high < 1
    assert [ranked["sets"] for ranked in answer["ranked"]] == [{"response": ["responds", "does not respond"]}] * 2


def test_predict_gives_json(sim_bundle: Path, patient: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(patient.read_text())
    document["events"].append({"code": "LAB//HGB", "time": "2199-01-01"})
    document["omics"]["expression"] = {"no such gene": 1}
    document["covariates"]["indication"] = "new"
    patient.write_text(json.dumps(document))
    main(["predict", str(sim_bundle), str(patient), "--treatment", "RAF-101", "--treatment", "new", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["task"] == "response"
    assert {tuple(r["treatment"]): r["unknown_drugs"] for r in answer["ranked"]}[("new",)] == ["new"]
    assert all(set(r["prediction"]) == {"response", "os", "sensitivity"} for r in answer["ranked"])
    assert answer["events_after_prediction"] == 1
    assert answer["unknown_features"]["expression"] == 1
    assert answer["unknown_covariates"] == ["indication"]

    main(["predict", str(sim_bundle), str(patient), "--treatment", "RAF-101"])
    table = capsys.readouterr().out
    for note in ("features that the model does not know", "category not seen", "events after prediction_time"):
        assert note in table


def test_convert_fhir_makes_a_cohort(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, ids = tmp_path / "source.json", tmp_path / "made" / "cohort", tmp_path / "ids.json"
    source.write_text(json.dumps(bundle(resources())))
    arguments = ["convert", "fhir", str(source), str(out), "--timezone", "Europe/Helsinki", "--keep-ids", str(ids)]
    main(arguments)
    printed = capsys.readouterr().out
    assert "left, no-time" in printed
    assert "3 samples with variants of 2 patients" in printed
    assert json.loads(ids.read_text()) == {"p-1": 1, "p-2": 2}
    assert json.loads((out / "cohort.json").read_text()) == {
        "format": "ican-cohort/1",
        "name": "cohort",
        "source_timezone": "Europe/Helsinki",
    }
    assert sorted(path.name for path in out.iterdir()) == ["cohort.json", "conversion.json", "omics", "records"]
    main(["validate", str(out)])
    assert "0 errors" in capsys.readouterr().out
    assert "--keep-ids: expected a new file" in _fails(*arguments)
    assert "expected a new or empty folder" in _fails(*arguments[:-2])
    assert "--keep-ids" in _fails(*arguments[:3], tmp_path / "b", "--keep-ids", tmp_path / "b" / "ids.json")
    assert "--timezone" in _fails(*arguments[:3], tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.json", "made", "source.json"]


def test_convert_omop_makes_a_cohort(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, ids = tmp_path / "source", tmp_path / "made" / "cohort", tmp_path / "ids.json"
    source.mkdir()
    (source / "person.csv").write_text("person_id,year_of_birth\np-1,1950\n")
    (source / "death.csv").write_text("person_id,death_datetime\np-1,2020-01-01T10:00:00Z\np-2,2020-01-01\n")
    arguments = ["convert", "omop", str(source), str(out), "--timezone", "Europe/Helsinki", "--keep-ids", str(ids)]
    main(arguments)
    printed = capsys.readouterr().out
    assert "1 left, no-subject" in printed
    assert "2 events of 1 persons" in printed
    assert "p-1" not in printed
    assert json.loads(ids.read_text()) == {"p-1": 1}
    assert sorted(path.name for path in out.iterdir()) == ["cohort.json", "conversion.json", "records"]
    main(["validate", str(out)])
    assert "0 errors" in capsys.readouterr().out
    assert "--keep-ids: expected a new file" in _fails(*arguments)
    assert "--timezone" in _fails(*arguments[:3], tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.json", "made", "source"]


def test_predict_reads_a_fhir_bundle(sim_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(bundle(of_patient(resources(), "p-2"))))
    ask = [sim_bundle, path, "--treatment", "RAF-101", "--at", "2021-02-27"]
    main(["predict", *map(str, ask), "--timezone", "Europe/Helsinki", "--assay", "focused", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["ranked"][0]["treatment"] == ["RAF-101"]
    assert answer["record"]["events"] == 1
    assert answer["events_after_prediction"] == 1
    assert "'wide'" in _fails("predict", *ask), "the assay is not said"
    path.write_text(json.dumps(bundle(resources())))
    assert "one Patient, got 2" in _fails("predict", *ask)
    path.write_text(json.dumps(bundle(of_patient(resources(), "p-1"))))
    assert "--timezone" in _fails("predict", *ask)
    path.write_text("{}")
    assert "with a FHIR Bundle only" in _fails("predict", *ask)


def test_predict_writes_a_cohorts_predictions_where_it_is_told(
    sim_bundle: Path, elsewhere: Path, patient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "predictions.parquet"
    main(["predict", str(sim_bundle), str(elsewhere), "--out", str(out), "--task", "response"])
    n = len(pl.read_parquet(out))
    assert capsys.readouterr().out.startswith(f"{n} episodes of ")
    messages = {
        _fails("predict", sim_bundle, elsewhere): "--out: expected a file",
        _fails("predict", sim_bundle, elsewhere, "--out", tmp_path): "--out: expected a file",
        _fails("predict", sim_bundle, elsewhere, "--out", out, "--json"): "expected with a PATIENT.json only",
        _fails("predict", sim_bundle, elsewhere, "--out", out, "--task", "x"): "got tasks response",
        _fails("predict", sim_bundle, tmp_path, "--out", out): "cohort.json: expected the file",
        _fails("predict", sim_bundle, patient, "--out", out): "expected with the folder of a cohort only",
        _fails("predict", sim_bundle, elsewhere, "--out", tmp_path / "none" / "p.parquet"): "--out: expected a folder",
    }
    for message, expected in messages.items():
        assert message.startswith("ican predict: ")
        assert expected in message


def test_evaluate_prints_a_table_or_json(
    sim_bundle: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["evaluate", str(sim_bundle), str(elsewhere), "--out", str(tmp_path / "evaluation"), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    main(["evaluate", str(sim_bundle), str(elsewhere)])
    assert capsys.readouterr().out.startswith("task")


def test_verify_says_so(sim_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", str(sim_bundle)])
    told = capsys.readouterr().out
    assert told.startswith("every file is as exported, nothing in it names a machine or a subject, and the golden")
    assert digest((sim_bundle / MANIFEST).read_bytes()) in told


def test_verify_names_another_bundle_and_a_subject(
    sim_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = digest((sim_bundle / MANIFEST).read_bytes())
    main(["verify", str(sim_bundle), "--sha256", known.upper()])
    with pytest.raises(SystemExit, match="it is another one"):
        main(["verify", str(sim_bundle), "--sha256", "0" * 64])
    subjects = tmp_path / "subjects"
    subjects.write_text("90210000000007\n")
    main(["verify", str(sim_bundle), "--subjects", str(subjects)])
    copy = Path(shutil.copytree(sim_bundle, tmp_path / "bundle"))
    reseal(copy, of="90210000000007")
    with pytest.raises(SystemExit, match=f"{MANIFEST} holds a subject id"):
        main(["verify", str(copy), "--subjects", str(subjects)])


def test_explain_tells_what_drove_the_answer(
    sim_bundle: Path, patient: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["predict", str(sim_bundle), str(patient), "--treatment", "EGF-101", "--explain"])
    assert "what drove the first answer" in capsys.readouterr().out
    main(["predict", str(sim_bundle), str(patient), "--treatment", "EGF-101", "--explain", "--json"])
    assert json.loads(capsys.readouterr().out)["drivers"]


def test_serve_makes_tokens_and_refuses_nonsense(
    sim_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "tokens"
    main(["serve", "--new-token", "clinic", "--tokens", str(tokens)])
    token = capsys.readouterr().out.strip()
    assert len(token) > 40
    assert tokens.read_text().startswith("clinic ")
    for arguments, told in (
        (["--new-token", "clinic"], "expected --tokens"),
        ([], "expected the folder of a bundle"),
        ([str(sim_bundle), "--host", "0.0.0.0"], "tokens: expected a file"),
        ([str(sim_bundle), "--tls-key", str(tokens)], "expected both or neither"),
        ([str(sim_bundle), "--tokens", str(tmp_path / "none")], "none: expected a file, found none"),
        ([str(sim_bundle), "--parallel", "0"], "parallel: expected more than 0"),
        ([str(sim_bundle), "--device", "cuda"], "CUDAExecutionProvider"),
        ([str(tmp_path)], "expected a folder with manifest.json"),
    ):
        with pytest.raises(SystemExit, match=told):
            main(["serve", *arguments])


def test_an_audit_log_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.write("request", caller="clinic")
    last = log.last
    log.close()
    main(["audit-log", "verify", str(tmp_path / "audit.jsonl"), "--last", last])
    assert capsys.readouterr().out == f"1 lines, each as it was written; the last is {last}\n"
    with pytest.raises(SystemExit, match="expected the last line"):
        main(["audit-log", "verify", str(tmp_path / "audit.jsonl"), "--last", "0"])
    (tmp_path / "audit.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit, match=r"audit\.jsonl, line 1"):
        main(["audit-log", "verify", str(tmp_path / "audit.jsonl")])


def test_export_wants_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected a finished fit"):
        main(["export", str(tmp_path)])


def test_a_changed_bundle_is_refused(sim_bundle: Path, patient: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sim_bundle, copy)
    (copy / "schema.json").write_text((copy / "schema.json").read_text() + " ")
    message = "schema.json is not the file that was exported"
    assert message in _fails("verify", copy)
    assert message in _fails("predict", copy, patient, "--treatment", "A")


def test_mistakes_end_in_one_line(sim_bundle: Path, patient: Path, tmp_path: Path) -> None:
    broken, listed, wrong = (tmp_path / name for name in ("broken.json", "list.json", "wrong.json"))
    broken.write_bytes(b"\xff{")
    listed.write_text("[]")
    wrong.write_text('{"omics": {"expression": {"ERBB2": NaN}}}')
    ask = ("--treatment", "RAF-101")
    messages = {
        _fails("predict", tmp_path / "none", patient, *ask): "expected a folder with manifest.json",
        _fails("predict", sim_bundle, tmp_path / "none.json", *ask): "none.json",
        _fails("predict", sim_bundle, broken, *ask): "broken.json: expected JSON",
        _fails("predict", sim_bundle, listed, *ask): "list.json: expected a JSON object, got list",
        _fails("predict", sim_bundle, wrong, *ask): "omics.expression.ERBB2: expected a finite number",
        _fails("predict", sim_bundle, patient, "--treatment", "+"): "treatments[0]: expected at least one drug",
        _fails("predict", sim_bundle, patient, "--treatment", "inhibitor:X?"): "treatments[0]: expected a gene",
    }
    for message, expected in messages.items():
        assert message.startswith("ican predict: ")
        assert expected in message
        assert "\n" not in message


def test_audit_finds_outcome_kind_and_split_by_itself(simulated: Path, tmp_path: Path) -> None:
    episodes = read_cohort(simulated, modalities=[]).episodes
    assert audit.choose_outcome(episodes, None, None) == OutcomeConfig(name="response", kind=Kind.binary)
    assert audit.choose_outcome(episodes, "os", None) == OutcomeConfig(name="os", kind=Kind.survival)
    assert audit.choose_outcome(episodes, "line", None) == OutcomeConfig(name="line", kind=Kind.regression)
    assert audit.choose_outcome(episodes.drop("response"), None, None).name == "os"
    assert audit.choose_split(episodes, None, "fold").method is Method.file
    unsplit = episodes.with_columns(pl.lit(None).alias("split"), (pl.col("subject_id") % 3 + 1).alias("part"))
    assert audit.choose_split(unsplit, None, "fold").method is Method.hash
    assert audit.choose_split(unsplit, None, "part") == SplitConfig(method=Method.fold, fold_column="part", fold=1)
    assert "--outcome: expected one of response, os, got 'pain'" in _fails("audit", simulated, "--outcome", "pain")
    assert "expected 0 or at least 2, got 1" in _fails("audit", simulated, "--permutations", "1")
    assert "no such folder" in _fails("audit", tmp_path / "none")


@pytest.mark.parametrize("command", [[], ["simulate"], ["validate"], ["audit"], ["predict"], ["evaluate"], ["verify"]])
def test_help_fits_a_terminal(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: ican")
    assert max(map(len, printed.splitlines())) <= 120


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"ican_ml {ican_ml.__version__}\n"


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train"])
    assert stopped.value.code == 2
    assert "invalid choice: 'train'" in capsys.readouterr().err
