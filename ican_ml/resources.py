"""Where the folders that ship beside the code are: ``configs/`` (YAML groups) and ``kernels/`` (CUDA sources).

Both lie at the top of the repository, where people read and edit them. A wheel carries them inside the package, since a
wheel has no "beside". So there are two places to look: the package first, then the folder that holds the package (a
checkout, or an editable install of one). Hydra and CuPy both take plain absolute paths.
"""

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent


def resource_folder(name: Literal["configs", "kernels"]) -> Path:
    """Find a folder of shipped files.

    Parameters
    ----------
    name
        ``"configs"`` or ``"kernels"``.

    Returns
    -------
    Path
        Its absolute path.

    Raises
    ------
    FileNotFoundError
        If it lies neither inside nor beside the package: the installation is incomplete.
    """
    for folder in (_PACKAGE / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"expected the folder {name}/ inside or beside the installed package ican_ml, found neither: "
        "install it again, from a wheel or from a complete checkout"
    )
