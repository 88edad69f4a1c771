"""Grow the network's trees (XGBoost; Chen and Guestrin 2016, arXiv:1603.02754), before anything else is fitted.

The linear and the deep path then learn what the trees leave. On the patients that they were grown on, that is too
little, so in training each patient's trees come from a growth on other subjects (cross-fitting, as in
:mod:`ican_ml.training.wide`). The tuning patients say how many trees, and are then grown on too; the scores that they
are judged by later come from before. Survival is grown on the network's own likelihood of discrete hazards: a tree
shifts the logits of all intervals. Each further member of the ensemble grows under another seed; cross-fitting asks
the first alone. Where categories have trees of their own (``model.trees_by``), each grows on its own patients, and one
with too few takes those of all.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ican_ml.inputs.encode import Float32, Int64
from ican_ml.inputs.schema import Task
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.model.trees import TreePath
from ican_ml.training.config import TrainingConfig
from ican_ml.training.data import PatientData
from ican_ml.training.losses import total_loss
from ican_ml.training.outcomes import log_odds
from ican_ml.training.wide import subject_folds

_ROWS = 4096
_FOLDS = 3
_LITTLE = 1e-6
_FEWEST = 100
_MIX_SD = 0.2
Grown = tuple[Int64, Float32, Float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """Episodes: values to split on, whose trees they have, and what the loss needs; weight 0 = no outcome."""

    values: Float32
    group: Int64
    target: Float32
    weight: Float32
    patient: Int64
    slot: Int64

    def take(self, chosen: npt.NDArray[Any]) -> _Rows:
        return _Rows(**{name: getattr(self, name)[chosen] for name in self.__dataclass_fields__})

    def of_group(self, group: int) -> _Rows | None:
        """Those of a category; None = too few."""
        chosen = self.group == group
        return self.take(chosen) if chosen.sum() >= _FEWEST else None

    def and_rows(self, others: _Rows) -> _Rows:
        names = self.__dataclass_fields__
        return _Rows(**{name: np.concatenate([getattr(self, name), getattr(others, name)]) for name in names})

    @property
    def row_weight(self) -> Float32:
        weight: Float32 = self.weight if self.weight.ndim == 1 else self.weight.max(axis=1)
        return weight


def fit_trees(
    network: PatientTransformer,
    train: PatientData,
    tuning: PatientData,
    *,
    subject: Int64,
    training: TrainingConfig,
    seed: int,
) -> tuple[PatientData, PatientData]:
    """Grow the trees of every task in place.

    Parameters
    ----------
    subject
        int64 [N]: whose state each patient is.

    Returns
    -------
    tuple
        ``train`` and ``tuning`` with ``trees`` [N, R, tasks] among their arrays: each patient's from other subjects.
    """
    network.eval()
    trees = network.trees
    assert trees is not None
    scores = np.zeros((2, *train.shape, len(network.tasks)), np.float32)
    most = trees.leaf.shape[3]
    values = [tree_values(network, data) if len(data.rows) else None for data in (train, tuning)]
    for n, task in enumerate(network.tasks):
        part, held = (None if found is None else found.rows(task) for found in values)
        assert part is not None
        learnable = part.take(part.row_weight > 0)
        judged = held.take(held.row_weight > 0) if held is not None else None
        every = learnable if judged is None else learnable.and_rows(judged)
        growers = [_Grower(task, training, trees, seed + e) for e in range(network.n_members)]
        counts, stopped = growers[0].stopped(learnable, judged)
        for e, grower in enumerate(growers):
            kept = stopped if judged is None and not e else grower.grow(every, counts)
            for g, model in enumerate(kept):
                complete = complete_trees(model, trees.depth, most)
                for buffer, found in zip((trees.feature, trees.threshold, trees.leaf), complete, strict=True):
                    buffer[n, e, g] = torch.from_numpy(found)
            if held is not None:
                models = grower.grow(learnable, counts) if e else stopped
                scores[1, held.patient, held.slot, n] += grower.scores(models, held) / len(growers)
        fold = subject_folds(subject[part.patient], _FOLDS, seed)
        for f in range(_FOLDS):
            inside = part.take(fold == f)
            if not len(inside.patient):
                continue
            others = growers[0].grow(part.take((fold != f) & (part.row_weight > 0)), counts)
            scores[0, inside.patient, inside.slot, n] = growers[0].scores(others, inside)
    trees.mix.copy_(fit_mix(network, train, scores[0]))
    mixed = scores @ trees.mix.numpy()
    return train.with_scores(trees=mixed[0]), tuning.with_scores(trees=mixed[1])


def fit_mix(network: PatientTransformer, train: PatientData, scores: Float32) -> Tensor:
    """[tasks, tasks]: how much of each task's trees (rows) goes into each task's score (columns).

    By penalised likelihood, with a normal prior of standard deviation 0.2 around the identity. ``scores`` [N, R, tasks]
    are those of the training patients from trees that did not grow on them. The network's biases are fitted with it,
    and left as they were.
    """
    n_tasks = len(network.tasks)
    if n_tasks == 1:
        return torch.eye(1)
    mix = torch.eye(n_tasks, requires_grad=True)
    before = copy.deepcopy(network.bias.state_dict())
    arrays = {name: torch.from_numpy(values[train.rows]) for name, values in train.outcomes.items()}
    score_BRN = torch.from_numpy(scores[train.rows])
    weights = (arrays[f"{task.name}_weight"].reshape(*score_BRN.shape[:2], -1).amax(2) for task in network.tasks)
    n_episodes_N = torch.stack([weight.sum() for weight in weights]).clamp(min=1)
    optimiser = torch.optim.LBFGS([mix, *network.bias.parameters()], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = total_loss(network.tasks, network.outputs(score_BRN @ mix, {}), arrays)
        loss = loss + 0.5 * ((mix - torch.eye(n_tasks)).square().sum(0) / _MIX_SD**2 / n_episodes_N).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    optimiser.zero_grad()
    network.bias.load_state_dict(before)
    return mix.detach()


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeValues:
    """What the trees split on, [episodes, F], and whose it is: every regimen that some patient is asked about."""

    values: Float32
    group: Int64
    patient: Int64
    slot: Int64
    outcomes: Mapping[str, npt.NDArray[Any]]

    def outcome(self, name: str) -> npt.NDArray[Any]:
        """A loss array of these episodes, ``[episodes(, K)]``."""
        found: npt.NDArray[Any] = self.outcomes[name][self.patient, self.slot]
        return found

    def rows(self, task: Task) -> _Rows:
        target, weight = (self.outcome(f"{task.name}_{part}") for part in ("target", "weight"))
        return _Rows(
            values=self.values,
            group=self.group,
            target=target,
            weight=weight,
            patient=self.patient,
            slot=self.slot,
        )


def tree_values(network: PatientTransformer, data: PatientData) -> TreeValues:
    """Those of every regimen that some patient is asked about."""
    assert network.trees is not None
    values, patient, slot = [], [], []
    for start in range(0, len(data.rows), _ROWS):
        rows = data.rows[start : start + _ROWS]
        batch = data.batch(rows)
        with torch.no_grad():
            found = network.tree_values(batch, network.normalise(batch)[1])
        asked = torch.from_numpy(data.encoded.regimens.of_row[rows][:, : found.shape[1]] >= 0)
        values.append(found[asked].numpy())
        row, column = asked.nonzero(as_tuple=True)
        patient.append(rows[row.numpy()])
        slot.append(column.numpy())
    joined = np.concatenate(values)
    return TreeValues(
        values=joined,
        group=network.trees.group(torch.from_numpy(joined)).numpy(),
        patient=np.concatenate(patient),
        slot=np.concatenate(slot),
        outcomes=data.outcomes,
    )


class _Grower:
    """XGBoost on one task, from the same start as the network's: the log odds, the mean, or the hazards of all.

    It grows a model of all rows, then one of each category that has trees of its own.
    """

    def __init__(self, task: Task, training: TrainingConfig, trees: TreePath, seed: int) -> None:
        self.task, self.patience = task, training.tree_patience
        self.groups, self.most = range(1, 1 + len(trees.categories)), trees.leaf.shape[3]
        objective = {"binary": "binary:logistic", "regression": "reg:squarederror", "survival": None}[task.kind]
        self.settings: dict[str, Any] = {
            "tree_method": "hist",
            "max_depth": trees.depth,
            "eta": training.tree_rate,
            "subsample": 0.8,
            "colsample_bytree": 0.5,
            "min_child_weight": 1.0 if task.kind == "survival" else 10.0,
            "max_bin": 64,
            "base_score": 0.5 if task.kind == "binary" else 0.0,
            "nthread": torch.get_num_threads(),
            "seed": seed,
            "verbosity": 0,
        } | ({"objective": objective} if objective else {"disable_default_eval_metric": 1})

    def stopped(self, part: _Rows, held: _Rows | None) -> tuple[list[int], list[Any]]:
        """How many trees the tuning rows want, of each model, and these trees."""
        start = self._start(part)
        model = self._train(part, start, self.most, held)
        counts = [model.best_iteration + 1 if held is not None else self.most]
        models = [model[: counts[0]]]
        for g in self.groups:
            own, judged = part.of_group(g), held.of_group(g) if held is not None else None
            model, count = models[0], counts[0]
            if own is not None:
                model = self._train(own, start, self.most if judged is not None else count, judged)
                count = model.best_iteration + 1 if judged is not None else count
            counts.append(count)
            models.append(model[:count])
        return counts, models

    def grow(self, part: _Rows, counts: list[int]) -> list[Any]:
        start = self._start(part)
        models = [self._train(part, start, counts[0], None)]
        for g in self.groups:
            own = part.of_group(g)
            models.append(models[0] if own is None else self._train(own, start, counts[g], None))
        return models

    def scores(self, models: list[Any], rows: _Rows) -> Float32:
        import xgboost as xgb

        def found(model: Any, values: Float32) -> Float32:
            return cast("Float32", model.predict(xgb.DMatrix(values), output_margin=True))

        of_all = found(models[0], rows.values)
        if not self.groups:
            return of_all
        own = of_all.copy()
        for g in self.groups:
            if (at := rows.group == g).any():
                own[at] = found(models[g], rows.values[at])
        return (of_all + own) / np.float32(2)

    def _train(self, part: _Rows, start: Float32, trees: int, held: _Rows | None) -> Any:
        import xgboost as xgb

        data = self._matrix(part, start, None)
        extra: dict[str, Any] = {}
        if self.task.kind == "survival":
            extra["obj"] = lambda margin, _: _hazards(part, start, margin)[:2]
        if held is not None:
            watched = self._matrix(held, start, data)
            extra |= {"evals": [(watched, "tuning")], "early_stopping_rounds": self.patience, "verbose_eval": False}
            if self.task.kind == "survival":
                extra["custom_metric"] = lambda margin, _: ("loss", _hazards(held, start, margin)[2])
        return xgb.train(self.settings, data, trees, **extra)

    def _start(self, part: _Rows) -> Float32:
        """Where boosting starts from: the mean, or the log odds of all (by interval)."""
        if self.task.kind == "regression":
            return np.zeros(1, np.float32)
        return log_odds(part.target, part.weight)

    def _matrix(self, part: _Rows, start: Float32, reference: Any) -> Any:
        import xgboost as xgb

        settings: dict[str, Any] = {"max_bin": 64, "ref": reference, "nthread": self.settings["nthread"]}
        if self.task.kind == "survival":
            return xgb.QuantileDMatrix(part.values, np.zeros(len(part.values)), **settings)
        target = part.target
        if self.task.kind == "regression":
            target = (target - self.task.centre) / self.task.scale
        margin = np.full(len(target), start.item(), np.float32)
        return xgb.QuantileDMatrix(part.values, target, weight=part.weight, base_margin=margin, **settings)


def _hazards(part: _Rows, start: Float32, margin: Float32) -> tuple[Float32, Float32, float]:
    """Gradient and curvature by row, and the mean loss, of the discrete hazards."""
    logits = start + margin[:, None]
    hazard = 1 / (1 + np.exp(-logits))
    loss = np.logaddexp(0, logits) - part.target * logits
    gradient, curvature = (part.weight * each for each in (hazard - part.target, hazard * (1 - hazard)))
    return gradient.sum(1), np.maximum(curvature.sum(1), _LITTLE), float((part.weight * loss).sum() / len(margin))


def complete_trees(model: Any, depth: int, most: int) -> Grown:
    """Splits and leaves of an XGBoost model as complete trees, the missing ones zero."""
    trees = json.loads(model.save_raw("json"))["learner"]["gradient_booster"]["model"]["trees"]
    feature = np.zeros((most, 2**depth - 1), np.int64)
    threshold = np.full((most, 2**depth - 1), np.inf, np.float32)
    leaf = np.zeros((most, 2**depth), np.float32)
    for t, tree in enumerate(trees):
        left, right = tree["left_children"], tree["right_children"]
        at = {0: 0}
        for place in range(2**depth - 1):
            node = at.get(place)
            if node is None:
                continue
            if left[node] >= 0:
                feature[t, place], threshold[t, place] = tree["split_indices"][node], tree["split_conditions"][node]
                at[2 * place + 1], at[2 * place + 2] = left[node], right[node]
            else:
                at[2 * place + 1] = node
        for place in range(2**depth - 1, 2 ** (depth + 1) - 1):
            if (node := at.get(place)) is not None:
                leaf[t, place - 2**depth + 1] = tree["split_conditions"][node]
    return feature, threshold, leaf
