"""What must not stand in a bundle: paths of the machine that made it, and ids of subjects. Standard library only."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from ican_ml.bundle.read import GOLDEN, BundleError

# An absolute path into the places where people and systems keep files, or one of Windows.
_PATH = re.compile(
    rb"(?<![\w./])(?<!\w:)(?:file:/)?/+(?:home|root|usr|opt|tmp|mnt|srv|var|data|scratch|Users|work)/[\w.-]+|[A-Z]:\\\\?\w+\\"
)
_ID = re.compile(rb"\d+")


def check_private(folder: Path, subject_ids: Iterable[str] = ()) -> None:
    """Look through every byte of a bundle's files.

    Parameters
    ----------
    subject_ids
        Whole numbers, as text. Short ones stand in any file of numbers, so only those of 6 digits and more are told.

    Raises
    ------
    BundleError
        At the first that is found; names the file, and of a subject nothing.
    """
    ids = {each.encode() for each in subject_ids if len(each) >= 6}
    for path in sorted(folder.iterdir()):
        for content in _contents(path):
            if found := _PATH.search(content):
                raise BundleError(
                    f"bundle: {path.name} holds a path of a machine ({found[0][:60].decode('ascii', 'replace')})"
                )
            if ids and ids & set(_ID.findall(content)):
                raise BundleError(f"bundle: {path.name} holds a subject id; export it again with this version")


def _contents(path: Path) -> list[bytes]:
    content = path.read_bytes()
    if path.name != GOLDEN:
        return [content]
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        return [packed.read(name) for name in packed.namelist()]
