"""Bearer tokens of the service: who may ask. The file holds names and digests, never a token.

    clinic-a 5e884898da28047151d0e56f8dc6292773603d0d6aabbd...

A token is 32 random bytes, so that its SHA-256 can be kept as it is: nobody guesses it, with or without salt.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

_LINE = re.compile(r"(?P<name>[A-Za-z0-9_.-]{1,64}) (?P<digest>[0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def new_token(path: Path, name: str) -> str:
    """Add a caller to the file, which is made if there is none; returns the token, which is kept nowhere.

    Raises
    ------
    ValueError
        If the name is taken, or has other characters than letters, digits, ``_``, ``.`` and ``-``.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"name: expected up to 64 letters, digits, '_', '.' or '-', got {name!r}")
    if path.exists() and name in read_tokens(path):
        raise ValueError(f"name: expected one that {path.name} does not have, got {name!r}; remove its line first")
    token = secrets.token_urlsafe(32)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with open(descriptor, "w") as file:
        file.write(f"{name} {_digest(token)}\n")
    return token


def read_tokens(path: Path) -> dict[str, str]:
    """By caller: the token's digest.

    Raises
    ------
    ValueError
        If a line is no name and digest, or a name stands twice.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match["name"] in found:
            raise ValueError(
                f"{path.name}, line {number}: expected a new name and 64 hexadecimal digits, got something else; "
                "make tokens with `ican serve --new-token`"
            )
        found[match["name"]] = match["digest"]
    return found


def caller_of(tokens: Mapping[str, str], header: str | None) -> str | None:
    """The name of who sent ``Authorization: Bearer <token>``, or None; takes as long for every token."""
    scheme, _, token = (header or "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    given, found = _digest(token.strip()), None
    for name, known in tokens.items():
        if hmac.compare_digest(given, known):
            found = name
    return found


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
