"""A bundle whose files were changed by somebody who can also seal it again."""

import json
import shutil
from pathlib import Path
from typing import Any

from ican_ml.bundle.read import MANIFEST, digest, sealed


def reseal(folder: Path, **changes: Any) -> None:
    """Make the manifest fit the files that lie there, as an export would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest.pop("sealed")
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    manifest["sha256"] = {name: digest((folder / name).read_bytes()) for name in names}
    (folder / MANIFEST).write_bytes(sealed({**manifest, **changes}))


def resealed(source: Path, folder: Path, **documents: Any) -> Path:
    """A copy with other JSON files, named without their ending; None: without that file."""
    shutil.copytree(source, folder)
    for name, document in documents.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(document)) if document is not None else path.unlink()
    reseal(folder)
    return folder
