"""Find resistance (:mod:`ican_ml.model.resistance`): forward search, an altered feature and its drug classes at a time.

Of every pair of feature and class the score test says how far the log likelihood would rise. The best feature is taken,
with the classes that pay for naming them, log(classes) each, if together they pay for naming it, log(features) + 1
(minimum description length; Rissanen 1978, doi:10.1016/0005-1098(78)90005-5; the 1, so that chance pays in one cohort
of thirteen, not of five, where there is nothing to find). After each, all shares and the drugs' levels are
fitted together by penalised maximum likelihood; the levels' penalty is the one that makes the data most likely
(empirical Bayes; Morris 1983, doi:10.1080/01621459.1983.10477920). All is undone where the tuning loss is not lower.

Shapes: E episodes, P patients, F features, C drug classes, D drugs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ican_ml.encoding.bag import bag_transposed
from ican_ml.encoding.csr import CSRBatch
from ican_ml.inputs.answer import sigmoid
from ican_ml.inputs.encode import Int64
from ican_ml.inputs.schema import FIRST_KNOWN, InputSchema
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.model.resistance import ResistancePath
from ican_ml.training.data import PatientData, PatientLoader

Float = npt.NDArray[np.float64]
_MOST = 32
_PENALTY = 4.0  # of a share; a pair on which there is less information is not tried
_LEVEL_PENALTIES = (10.0, 30.0, 100.0, 300.0, 1000.0)
_STEPS, _TOLERANCE = 30, 1e-8
_BATCH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Resistance:
    """An altered feature takes a share of what the targets promise from the drugs of a class."""

    task: str
    modality: str
    feature: str
    drug_class: str
    share: float


def fit_resistance(
    network: PatientTransformer, schema: InputSchema, train: PatientData, tuning: PatientData
) -> list[Resistance]:
    """Fit ``network.resistance`` in place, binary task by task; returns what was found, strongest first."""
    path = network.resistance
    assert path is not None
    network.eval()
    found: list[Resistance] = []
    for n, task in enumerate(network.tasks):
        if task.kind != "binary":
            continue
        learn = _Episodes.of(network, path, train, n)
        check = _Episodes.of(network, path, tuning, n) if len(tuning.rows) else learn
        pairs, share, level = _search(learn)
        if check.loss(check.after(check.columns(pairs), share, level)) >= check.loss(check.logit):
            continue
        path.level[:, n] = torch.from_numpy(level)
        names = [
            (m.name, i, name) for m in schema.modalities if m.kind == "binary" for i, name in enumerate(m.features)
        ]
        for (feature, drug_class), each in zip(pairs, share.tolist(), strict=True):
            modality, position, name = names[feature]
            path.get_buffer(f"share_{modality}")[position, drug_class * path.n_tasks + n] = each
            label = schema.classes[drug_class - FIRST_KNOWN]
            found.append(Resistance(task=task.name, modality=modality, feature=name, drug_class=label, share=each))
    return sorted(found, key=lambda each: -each.share)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Episodes:
    """Labelled episodes of a binary task.

    Attributes
    ----------
    target, weight, logit, gain
        [E]. Outcome, what it counts, what the network says without this path, and what the targets promise.
    patient
        int64 [E]: a row of ``altered``.
    drug, drug_class
        [E, D], [E, C]: share of the regimen's drugs; unknown ones count for none.
    altered
        By modality [P, F]: 1 where the feature is altered.
    """

    target: Float
    weight: Float
    logit: Float
    gain: Float
    patient: Int64
    drug: Float
    drug_class: Float
    altered: Sequence[CSRBatch]

    @classmethod
    def of(cls, network: PatientTransformer, path: ResistancePath, data: PatientData, number: int) -> _Episodes:
        task = network.tasks[number]
        n_drugs, n_classes = len(path.level), path.n_classes
        parts: list[dict[str, npt.NDArray[Any]]] = []
        for i, batch in enumerate(PatientLoader(data, batch_size=_BATCH)):
            weight = batch[f"{task.name}_weight"].double().numpy()
            place, slot = np.nonzero(weight)
            with torch.inference_mode():
                said = network.paths(batch)
                logit = network.outputs(said.score, network.mean(said.deep), network.mean(said.columns))[task.name]
            assert said.gain is not None
            drug, drug_class = (batch[f"treatment_{name}"].numpy()[place, slot] for name in ("drug", "class"))
            parts.append(
                {
                    "target": batch[f"{task.name}_target"].double().numpy()[place, slot],
                    "weight": weight[place, slot],
                    "logit": logit.double().numpy()[place, slot],
                    "gain": said.gain[..., number].double().numpy()[place, slot],
                    "drug": _shares(drug, n_drugs),
                    "drug_class": _shares(drug_class, n_classes),
                    "patient": i * _BATCH + place,
                }
            )
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        altered = []
        for name in path.modalities:
            matrix = data.encoded.modalities[name].matrix.take(data.rows)
            altered.append(matrix.with_values((matrix.values != 0).astype(np.float32)))
        return cls(altered=altered, **joined)

    def loss(self, logit: Float) -> float:
        """Weighted sum of the cross-entropies."""
        return float(self.weight @ (np.logaddexp(0.0, logit) - self.target * logit))

    def slope(self, logit: Float) -> tuple[Float, Float]:
        """What each logit should rise by, and how sharply the loss bends."""
        probability = sigmoid(logit)
        return self.weight * (self.target - probability), self.weight * probability * (1 - probability)

    def columns(self, pairs: Sequence[tuple[int, int]]) -> Float:
        """[E, pairs]: what a share of 1 adds to the logits."""
        found = np.zeros((len(self.target), len(pairs)))
        first = np.cumsum([0, *(block.n_features for block in self.altered)])
        for i, (feature, drug_class) in enumerate(pairs):
            m = int(np.searchsorted(first, feature, side="right")) - 1
            block = self.altered[m]
            has = np.zeros(block.n_rows)
            has[block.row_ids()[(block.indices == feature - first[m]) & (block.values > 0)]] = 1
            found[:, i] = -has[self.patient] * self.drug_class[:, drug_class] * self.gain
        return found

    def after(self, columns: Float, share: Float, level: Float) -> Float:
        """[E]: the logits with this path."""
        found: Float = self.logit + columns @ share + self.drug @ level
        return found

    def rises(self, logit: Float) -> tuple[Float, npt.NDArray[np.bool_]]:
        """[F, C]: by how much a positive share would raise the log likelihood, and whether the data can tell."""
        slope, bend = self.slope(logit)
        effect = -self.drug_class * self.gain[:, None]
        sums = []
        for table in (effect * slope[:, None], effect**2 * bend[:, None]):
            by_patient = np.zeros((self.altered[0].n_rows, table.shape[1]))
            np.add.at(by_patient, self.patient, table)
            rows = by_patient.astype(np.float32)
            sums.append(np.concatenate([bag_transposed(block, rows) for block in self.altered]).astype(np.float64))
        return np.maximum(sums[0], 0) ** 2 / (2 * np.maximum(sums[1], _PENALTY)), sums[1] >= _PENALTY


def _search(episodes: _Episodes) -> tuple[list[tuple[int, int]], Float, Float]:
    """Pairs (feature, class), their shares, and the drugs' levels."""
    pairs: list[tuple[int, int]] = []
    columns = episodes.columns(pairs)
    share, level = _fit(episodes, columns)
    while episodes.altered and len(pairs) < _MOST:
        rises, tried = episodes.rises(episodes.after(columns, share, level))
        worth = np.where(tried, rises - np.log(max(tried.any(0).sum(), 1)), 0)
        worth[tuple(np.array(pairs, np.int64).reshape(-1, 2).T)] = 0
        together = np.maximum(worth, 0).sum(1) - np.log(max(tried.any(1).sum(), 1)) - 1
        for feature in {feature for feature, _ in pairs}:
            together[feature] = np.maximum(worth[feature], 0).sum()
        best = int(together.argmax())
        if together[best] <= 0:
            break
        pairs += [(best, int(drug_class)) for drug_class in np.flatnonzero(worth[best] > 0)]
        columns = episodes.columns(pairs)
        share, level = _fit(episodes, columns)
    return pairs, np.clip(share, 0, 1), level


def _fit(episodes: _Episodes, columns: Float) -> tuple[Float, Float]:
    """Shares [pairs] and levels [D] by Newton's method."""
    x = np.concatenate([columns, episodes.drug], axis=1)
    is_level = np.arange(x.shape[1]) >= columns.shape[1]
    at = np.zeros(x.shape[1])
    penalty = np.where(is_level, _LEVEL_PENALTIES[-1], _PENALTY)
    for _ in range(2):
        at = _newton(episodes, x, penalty, at)
        penalty[is_level] = _level_penalty(episodes, x[:, ~is_level] @ at[~is_level])
    at = _newton(episodes, x, penalty, at)
    return at[~is_level], at[is_level]


def _newton(episodes: _Episodes, x: Float, penalty: Float, at: Float) -> Float:
    for _ in range(_STEPS):
        slope, bend = episodes.slope(episodes.logit + x @ at)
        step = np.linalg.solve((x * bend[:, None]).T @ x + np.diag(penalty), x.T @ slope - penalty * at)
        at = at + step
        if np.abs(step).max(initial=0.0) < _TOLERANCE:
            break
    return at


def _level_penalty(episodes: _Episodes, added: Float) -> float:
    """The penalty under which the drugs' score statistics are most likely, each drug by itself."""
    slope, bend = episodes.slope(episodes.logit + added)
    score, information = episodes.drug.T @ slope, (episodes.drug**2).T @ bend
    likelihood = [
        float((score**2 / (information + penalty) - np.log1p(information / penalty)).sum())
        for penalty in _LEVEL_PENALTIES
    ]
    return _LEVEL_PENALTIES[int(np.argmax(likelihood))]


def _shares(ids: Int64, count: int) -> Float:
    """[E, count]: the share of each id among the regimen's; padding and unknown for none."""
    found = np.zeros((len(ids), count))
    np.add.at(found, (np.arange(len(ids))[:, None], ids), ids > 0)
    found /= np.maximum(found.sum(1, keepdims=True), 1)
    found[:, :FIRST_KNOWN] = 0
    return found
