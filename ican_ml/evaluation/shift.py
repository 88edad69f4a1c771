"""What shifted between the training cohort and another: how the other's values lie on training's scale, by column.

In: standardised values of patients, a part of the subjects at a time, and what the model does not know of their records
and treatments. Out: plain dictionaries without a subject. Columns, codes and names that fewer than `MIN_SUBJECTS`
subjects have are counted, not shown. A value is *beyond* when it lies more than `LIMIT` standard deviations from the
training mean; *moved* is the distance of the means in training standard deviations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.evaluation.evaluate import MIN_SUBJECTS
from ican_ml.inputs.schema import ModalitySchema
from ican_ml.records.vocabulary import FAR, UNKNOWN, Events, Vocabulary

LIMIT = 5.0
_SHOWN = 10
_TARGET_SUM = 1e4
Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


class ColumnShift:
    """Running figures of some columns. Every subject's rows must come in one call.

    Parameters
    ----------
    names
        Of the columns.
    ranged
        False for columns whose range says nothing, such as binary calls: means alone.
    """

    def __init__(self, names: Sequence[str], *, ranged: bool = True) -> None:
        self.names = tuple(names)
        self.ranged = ranged
        self.subjects = np.zeros(len(names), np.int64)
        self.known = np.zeros(len(names), np.int64)
        self.beyond = np.zeros(len(names), np.int64)
        self.sum = np.zeros(len(names))

    def add(self, z: Float64, known: Bool, subject: Int64) -> tuple[Int64, Int64]:
        """Count rows [n, columns]; returns how many values of each row are beyond, and how many could be, int64 [n]."""
        z = np.where(known, z, 0.0)
        beyond = (np.abs(z) > LIMIT) & self.ranged
        self.known += known.sum(axis=0)
        self.beyond += beyond.sum(axis=0)
        self.sum += z.sum(axis=0)
        _, number = np.unique(subject, return_inverse=True)
        order = np.argsort(number, kind="stable")
        starts = np.flatnonzero(np.diff(number[order], prepend=-1))
        if len(starts):
            self.subjects += np.logical_or.reduceat(known[order], starts, axis=0).sum(axis=0)
        return beyond.sum(axis=1), known.sum(axis=1) * self.ranged

    def to_dict(self) -> dict[str, Any]:
        """Shares over the columns that enough subjects have, and the columns that moved most."""
        shown = np.flatnonzero(self.subjects >= MIN_SUBJECTS)
        moved = self.sum[shown] / self.known[shown]
        order = np.argsort(-np.abs(moved), kind="stable")[:_SHOWN]
        share = self.beyond[shown] / self.known[shown]
        most = [
            {"column": self.names[shown[i]], "moved": float(moved[i])}
            | ({"beyond": float(share[i])} if self.ranged else {})
            for i in order
        ]
        return {
            "columns": len(shown),
            "beyond": float(self.beyond[shown].sum() / self.known[shown].sum()) if self.ranged and len(shown) else None,
            "moved_by_1_sd": int((np.abs(moved) > 1).sum()),
            "most_moved": most,
        }


def standardised(
    model: ModalitySchema, values: npt.NDArray[np.floating[Any]], total: npt.NDArray[np.floating[Any]]
) -> Float64:
    """Values [n, features] as the network sees them, unclipped; ``total`` [n] is the size factor of counts."""
    raw = values.astype(np.float64)
    if model.kind == "count":
        raw = np.log1p(raw * (_TARGET_SUM / np.maximum(total.astype(np.float64), 1e-6))[:, None])
    return np.asarray((raw - model.mean) * model.inverse_sd, np.float64)


class RecordShift:
    """Running figures of what a vocabulary understands of events."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._known = set(vocabulary.codes)
        self.counts = dict.fromkeys(("events", "known", "backed_off", "unknown", "valued", "kept", "far"), 0)
        self._subjects: dict[str, int] = {}
        self._is_backed_off: dict[str, bool] = {}

    def add(self, events: Events, subject: Int64) -> dict[str, Float64]:
        """Count rows of events; returns the share of each row's events that are backed off and unknown, NaN without."""
        ids, values, has_value = self.vocabulary.encode(events)
        known = np.fromiter((code in self._known for code in events.codes), bool, len(events.codes))[events.code]
        unknown = ids == UNKNOWN
        backed_off = ~known & ~unknown
        valued = np.isfinite(events.value)
        far = np.abs(values) >= FAR
        for name, chosen in (
            ("known", known & ~unknown),
            ("backed_off", backed_off),
            ("unknown", unknown),
            ("valued", valued),
            ("kept", has_value),
            ("far", far),
        ):
            self.counts[name] += int(chosen.sum())
        self.counts["events"] += len(ids)
        row = events.row_ids()
        at = np.flatnonzero(~known)
        pairs = np.unique(np.stack([events.code[at].astype(np.int64), subject[row[at]]]), axis=1)
        position, n_subjects = np.unique(pairs[0], return_counts=True)
        backs_off = dict(zip(events.code[at].tolist(), backed_off[at].tolist(), strict=True))
        for p, n in zip(position.tolist(), n_subjects.tolist(), strict=True):
            code = events.codes[p]
            self._subjects[code] = self._subjects.get(code, 0) + n
            self._is_backed_off[code] = backs_off[p]
        n_events = np.diff(events.offsets)

        def share(chosen: Bool) -> Float64:
            found: Float64 = np.full(events.n_rows, np.nan)
            np.divide(np.bincount(row[chosen], minlength=events.n_rows), n_events, out=found, where=n_events > 0)
            return found

        return {"backed_off": share(backed_off), "unknown": share(unknown)}

    def to_dict(self) -> dict[str, Any]:
        """Shares of the events, and the commonest codes that the model does not know."""
        n, valued = max(self.counts["events"], 1), max(self.counts["valued"], 1)
        common = sorted((-count, code) for code, count in self._subjects.items() if count >= MIN_SUBJECTS)
        return {
            "events": self.counts["events"],
            **{name: self.counts[name] / n for name in ("known", "backed_off", "unknown")},
            "values_kept": self.counts["kept"] / valued,
            "values_far": self.counts["far"] / valued,
            "unseen_codes": len(self._subjects),
            "commonest_unseen_codes": [
                {"code": code, "subjects": -count, "understood": "backed off" if self._is_backed_off[code] else "not"}
                for count, code in common[:_SHOWN]
            ],
        }


def unseen_names(unseen: Sequence[Sequence[str]], subject: Int64) -> dict[str, Any]:
    """Names that training did not see: how many episodes they touch, and those that enough subjects have.

    Parameters
    ----------
    unseen
        [episodes] unseen names of each.
    subject
        int64 [episodes].

    Returns
    -------
    dict
        ``names`` (how many), ``episodes`` (of any of them; None for fewer than 10 subjects), ``common`` (a list of
        ``name``, ``episodes``, ``subjects``).
    """
    rows: dict[str, list[int]] = {}
    for row, names in enumerate(unseen):
        for name in dict.fromkeys(names):
            rows.setdefault(name, []).append(row)
    touched = np.array(sorted({row for found in rows.values() for row in found}), np.int64)
    sizes = {name: (len(found), len(np.unique(subject[found]))) for name, found in sorted(rows.items())}
    return {
        "names": len(rows),
        "episodes": None if 0 < len(np.unique(subject[touched])) < MIN_SUBJECTS else len(touched),
        "common": [
            {"name": name, "episodes": episodes, "subjects": subjects}
            for name, (episodes, subjects) in sorted(sizes.items(), key=lambda item: (-item[1][1], item[0]))
            if subjects >= MIN_SUBJECTS
        ],
    }


def shift_rows(shift: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The lines of a table: what shifted, in words."""
    rows = []
    if (records := shift["records"]) is not None:
        rows.append(("codes known, backed off, unknown", _shares(records, "known", "backed_off", "unknown")))
        rows.append(("values with a known unit", f"{records['values_kept']:.1%}"))
        if common := records["commonest_unseen_codes"]:
            rows.append(("commonest unseen codes", _listed([code["code"] for code in common])))
    for name, found in shift["modalities"].items():
        if not found["used"]:
            rows.append((f"{name}: not used", found["why"]))
            continue
        measured = found["episodes_measured"]
        rows.append((f"{name}: episodes measured", "few" if measured is None else f"{measured:.1%}"))
        if found["features_absent"] or found["features_unknown"]:
            said = f"{found['features_absent']} absent, {found['features_unknown']} unknown to the model"
            rows.append((f"{name}: features", said))
        for assay, taken in found["assays"].items():
            if taken["filled"] or taken["left_aside"] or taken["taken_for"] is None:
                said = f"taken for {taken['taken_for']}, {taken['filled']} filled, {taken['left_aside']} left aside"
                rows.append((f"{name}: assay {assay}", said))
        rows += _range_rows(name, found)
    rows += _range_rows("record and covariates", shift["summary"])
    for name, found in shift["covariates"].items():
        if not found["used"]:
            rows.append((f"covariate {name}", "the cohort has none"))
        elif found.get("unseen", {}).get("names"):
            rows.append((f"{name}: unseen", _touched(found["unseen"])))
    if shift["drugs"]["names"]:
        rows.append(("drugs: unseen", _touched(shift["drugs"])))
    for name, found in shift.get("survival", {}).items():
        rows.append((f"{name}: times beyond {found['last_edge_days']:g} days", f"{found['beyond']:.1%}"))
    return rows


def _range_rows(name: str, found: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "columns" not in found or not found["columns"]:
        return []
    rows = [] if found["beyond"] is None else [(f"{name}: values beyond {LIMIT:g} sd", f"{found['beyond']:.2%}")]
    if found["moved_by_1_sd"]:
        names = _listed([f"{column['column']} {column['moved']:+.1f}" for column in found["most_moved"]])
        rows.append((f"{name}: columns moved by 1 sd", f"{found['moved_by_1_sd']} of {found['columns']}: {names}"))
    return rows


def _touched(found: Mapping[str, Any]) -> str:
    episodes = "few" if found["episodes"] is None else f"{found['episodes']:,}"
    common = [f"{one['name']} ({one['episodes']:,})" for one in found["common"]]
    return f"{found['names']} in {episodes} episodes" + (f": {_listed(common)}" if common else "")


def _listed(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _shares(found: Mapping[str, Any], *names: str) -> str:
    return ", ".join(f"{found[name]:.1%}" for name in names)
