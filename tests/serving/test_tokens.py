"""Bearer tokens: made once, kept as digests, found by the caller who has one."""

from pathlib import Path

import pytest

from ican_ml.serving.tokens import caller_of, new_token, read_tokens


def test_a_token_names_its_caller_and_is_not_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    tokens = {name: new_token(path, name) for name in ("clinic-a", "clinic-b")}
    known = read_tokens(path)
    assert list(known) == ["clinic-a", "clinic-b"]
    assert path.stat().st_mode & 0o077 == 0
    for name, token in tokens.items():
        assert token not in path.read_text()
        assert caller_of(known, f"Bearer {token}") == name
        assert caller_of(known, f"bearer  {token} ") == name


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer abc", "abc"])
def test_another_header_names_nobody(tmp_path: Path, header: str | None) -> None:
    path = tmp_path / "tokens"
    new_token(path, "clinic")
    assert caller_of(read_tokens(path), header) is None


def test_a_digest_is_no_token(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    new_token(path, "clinic")
    known = read_tokens(path)
    assert caller_of(known, f"Bearer {known['clinic']}") is None


@pytest.mark.parametrize("name", ["clinic", "two words", "", "ä", "x" * 65])
def test_a_name_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tokens"
    new_token(path, "clinic")
    before = path.read_text()
    with pytest.raises(ValueError, match="name: expected"):
        new_token(path, name)
    assert path.read_text() == before


@pytest.mark.parametrize("line", ["clinic", "clinic abc", f"a b {'0' * 64}", f"clinic {'G' * 64}"])
def test_another_line_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# callers\n\n{line}\n")
    with pytest.raises(ValueError, match="tokens, line 3: expected"):
        read_tokens(path)
