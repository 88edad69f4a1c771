"""Stages are done or not, belong to one configuration and data, and what is private stays so."""

from pathlib import Path

import pytest

from ican_ml import run_folder
from ican_ml.run_folder import RunFolder, data_hash, stage_key


def test_a_finished_stage_is_found_again(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path / "run").stage("split/fit", "key")
    assert not stage.is_done
    stage.finish({"loss": [1.5, None]})
    again = RunFolder(tmp_path / "run").stage("split/fit", "key")
    assert again.is_done
    assert again.result() == {"loss": [1.5, None]}


def test_another_key_empties_the_stage_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    other = folder.stage("fold-1/fit", "key")
    stage = folder.stage("fold-0/fit", "key")
    for one in (stage, other):
        (one.folder / "weights").write_text("x")
        one.finish({})
    changed = folder.stage("fold-0/fit", "another")
    assert not changed.is_done
    assert not (changed.folder / "weights").exists()
    assert folder.stage("fold-1/fit", "key").is_done


def test_a_killed_stage_goes_on_but_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = RunFolder(tmp_path).stage("fit", "key")
    (stage.folder / "last.ckpt").write_text("half way")

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            stage.finish({})
    again = RunFolder(tmp_path).stage("fit", "key")
    assert not again.is_done
    assert (again.folder / "last.ckpt").read_text() == "half way"


def test_a_stage_without_its_key_is_not_trusted(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path).stage("fit", "key")
    stage.finish({})
    (stage.folder / "key").unlink()
    assert not RunFolder(tmp_path).stage("fit", "key").is_done


def test_version_control_passes_the_private_folder_by(tmp_path: Path) -> None:
    assert (RunFolder(tmp_path).private / ".gitignore").read_text() == "*\n"


def test_the_key_hears_every_part() -> None:
    key = stage_key({"a": 1, "b": [1, 2]}, "x")
    assert key == stage_key({"b": [1, 2], "a": 1}, "x")
    assert len({key, stage_key({"a": 1, "b": [2, 1]}, "x"), stage_key({"a": 1, "b": [1, 2]}, "y"), stage_key("x")}) == 4


def test_the_key_hears_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    key = stage_key("x")
    monkeypatch.setattr(run_folder, "_code_hash", lambda: "of another version")
    assert stage_key("x") != key


def test_the_hash_of_data_hears_bytes_and_names(tmp_path: Path) -> None:
    def made(name: str, files: dict[str, bytes]) -> str:
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
        return data_hash(tmp_path / name)

    files = {"a.parquet": b"1", "data/b.parquet": b"2"}
    first = made("first", files)
    assert first == made("second", dict(reversed(files.items())))
    changed = [{**files, "a.parquet": b"3"}, {"c.parquet": b"1", "data/b.parquet": b"2"}, {"a.parquet": b"1"}]
    assert len({first, *(made(f"changed-{i}", change) for i, change in enumerate(changed))}) == 4
