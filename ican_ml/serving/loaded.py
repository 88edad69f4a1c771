"""The bundle that a service answers with, and its exchange for a new version without a pause.

A new bundle is opened beside the one in use: every byte checked, every golden case proved. Only then is it taken;
requests that began with the old one end with it. One that may not be used is left, told once, and tried again when it
changes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ican_ml.bundle.read import MANIFEST, BundleError
from ican_ml.serving.predictor import Predictor

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Loaded:
    """Opens the bundle, or raises what :class:`Predictor` raises.

    Attributes
    ----------
    folder
        Of the bundle; may be a link to a folder.
    open
        Makes the predictor of a folder.
    predictor
        In use.
    since
        When it was taken, in seconds since 1970.
    refused
        How many new bundles could not be used.
    """

    folder: Path
    open: Callable[[Path], Predictor]
    predictor: Predictor = field(init=False)
    since: float = field(init=False)
    refused: int = 0
    _seen: tuple[int, int, int] | None = field(init=False)

    def __post_init__(self) -> None:
        self._seen = self._stamp()
        self.predictor = self.open(self.folder)
        self.since = time.time()

    def refresh(self) -> bool:
        """Take the bundle in the folder if it is another one and may be used; says whether it was taken."""
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return False
        try:
            found = self.open(self.folder)
        except (BundleError, OSError) as error:
            if stamp == self._stamp():  # not merely seen while it was being exchanged
                self._seen, self.refused = stamp, self.refused + 1
                _log.error("the new bundle is not used: %s", error)
            return False
        self._seen = stamp
        changed = found.digest != self.predictor.digest
        if changed:
            self.predictor, self.since = found, time.time()
            _log.info("bundle %s taken", found.version)
        return changed

    def _stamp(self) -> tuple[int, int, int] | None:
        """What changes with the manifest; None while there is none."""
        try:
            found = (self.folder / MANIFEST).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
