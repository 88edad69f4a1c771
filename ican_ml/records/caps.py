"""Tables that were cut in the source: groups of codes of which many subjects have exactly the same, largest number.

After its last event a subject whose table was cut is not one without further events: what follows is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ican_ml.cohort.asof import find_subjects
from ican_ml.records.store import RecordStore
from ican_ml.records.vocabulary import Bool, Int64

_CAP_LEAST, _CAP_SUBJECTS, _CAP_SHARE, _CAP_SPIKE = 10, 10, 0.01, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Cap:
    """A group of codes of which many subjects have exactly the same, largest number of dated events."""

    group: str
    events: int
    subjects: int


def find_caps(store: RecordStore, subject_id: Int64) -> list[Cap]:
    """Groups of codes (``LAB``, ``LAB//CEA``: first and first two parts) that look cut at a number of rows.

    That is: the largest number of dated events that any subject has is at least 10, at least 10 subjects and 1% of
    those with any have exactly it, and they are 5 times as many as on average have one to five fewer.
    """
    position, found = find_subjects(store.subject_id, subject_id)
    chosen = np.zeros(len(store.subject_id), bool)
    chosen[position[found]] = True
    subject = np.repeat(np.arange(len(chosen)), np.diff(store.offsets))
    at = np.flatnonzero(chosen[subject] & ~np.isnat(store.time))
    caps = []
    for group, members in code_groups(store.codes).items():
        count = np.bincount(subject[at[members[store.code[at]]]], minlength=len(chosen))
        most = int(count.max(initial=0))
        having, at_most = int((count > 0).sum()), int((count == most).sum())
        below = int(((count >= most - 5) & (count < most)).sum()) / 5
        if most >= _CAP_LEAST and at_most >= max(_CAP_SUBJECTS, _CAP_SHARE * having, _CAP_SPIKE * below):
            caps.append(Cap(group=group, events=most, subjects=at_most))
    return caps


def code_groups(codes: tuple[str, ...]) -> dict[str, Bool]:
    """First part, or first two, of codes -> bool [codes]; of groups with the same codes the shortest stays."""
    parts = [code.split("//") for code in codes]
    groups: dict[str, Bool] = {}
    known: set[bytes] = set()
    for depth in (1, 2):
        names = np.array(["//".join(part[:depth]) for part in parts])
        for name in np.unique(names).tolist():
            members = names == name
            if members.tobytes() not in known:
                known.add(members.tobytes())
                groups[name] = members
    return groups
