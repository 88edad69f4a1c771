"""Planted bugs: unified diffs against sources, applied to a copy, so that tests show what they would catch.

A patch names its files after ``+++ ``, relative to the folder of sources, with or without ``b/``. Line numbers are
ignored: what a hunk expects must stand in its file exactly once. If it no longer does, planting it is an error.
"""

import re
import shutil
from pathlib import Path


def plant(patch: Path, source_dir: Path, target_dir: Path) -> list[Path]:
    """Copy the CUDA sources of `source_dir` into `target_dir` with the bug of `patch`.

    Returns
    -------
    list of Path
        The ``.cu`` files of the copy, sorted.

    Raises
    ------
    ValueError
        If the patch does not fit the sources, or changes nothing.
    """
    target_dir.mkdir(parents=True, exist_ok=True)
    for path in (*source_dir.glob("*.cu"), *source_dir.glob("*.cuh")):
        shutil.copyfile(path, target_dir / path.name)
    files = re.split(r"^\+\+\+ (?:b/)?(\S+).*\n", patch.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    changed = 0
    for name, body in zip(files[::2], files[1::2], strict=True):
        path = target_dir / name
        if not path.is_file():
            raise ValueError(f"{patch.name}: {source_dir} has no {name}")
        text = path.read_text(encoding="utf-8")
        for hunk in re.split(r"^@@.*\n", body, flags=re.MULTILINE)[1:]:
            # Editors drop the blank at the start of an empty line of context.
            lines = [line or " " for line in hunk.splitlines()]
            lines = lines[
                : next((i for i, line in enumerate(lines) if line[0] not in " +-" or line[:4] == "--- "), None)
            ]
            old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in kept) for kept in (" -", " +"))
            if (found := f"\n{text}".count(f"\n{old}")) != 1:
                raise ValueError(f"{patch.name}: expected once in {name}, found {found} times:\n{old}")
            text = f"\n{text}".replace(f"\n{old}", f"\n{new}")[1:]
            changed += old != new
        path.write_text(text, encoding="utf-8")
    if not changed:
        raise ValueError(f"{patch.name}: no hunk that changes anything")
    return sorted(target_dir.glob("*.cu"))
