"""Fit the path of likeness (:mod:`ican_ml.model.kernel`): a Gaussian process over patients and drugs, in closed form.

The outcome of patient i under drug d is the drug's mean plus a deviation with covariance K[i, j] * L[d, e] (multi-task
Gaussian process; Bonilla, Chai and Williams 2007). K is a weighted sum of views of the omics; L says which drugs' own
deviations run together in training, and is estimated anew from the deviations that the process fills in where a pair
was not tested. The weights and the noise are what predicts best in cross-validation that leaves out what the tuning
patients leave out: whole subjects, or single pairs. Other kinds of tasks: :mod:`ican_ml.training.kernel_logistic`.

Shapes: S patients, D drugs (ids), V views.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from ican_ml.inputs.encode import Int64
from ican_ml.inputs.schema import FIRST_KNOWN, Task
from ican_ml.model.kernel import COMPONENTS, VIEWS, KernelPath, distance
from ican_ml.model.omics import FeatureBag
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.training.data import PatientData
from ican_ml.training.kernel_logistic import Episodes, choose
from ican_ml.training.kernel_logistic import fit as fit_likelihood
from ican_ml.training.wide import subject_folds

Float = npt.NDArray[np.float64]
_WHITENED = 60
_SHARE = (0.4, 0.4, 0.2)  # of the views in a modality's weight
_REACH = {"distance": 1.0, "whitened": 0.5, "product": 1.0}
_SHARED, _OWN, _ALIKE = 0.1, 0.2, 0.7  # of a drug's covariance: with all drugs, with none, with those that it resembles
_NOISE = (0.1, 0.3, 1.0, 3.0)
_FACTORS = (0.3, 3.0)
_FOLDS = 8
_FILLS = 3
_SWEEPS = 2
_STEPS, _TOLERANCE = 200, 1e-3
_WORTH = 1e-4  # a smaller gain is none
_LITTLE = 1e-9
_SMALLEST_SD = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    """What cross-validation chose: weight of each view, noise variance."""

    weight: Float
    noise: float


def fit_kernel(
    network: PatientTransformer, train: PatientData, tuning: PatientData, *, subject: Int64, seed: int
) -> tuple[PatientData, PatientData]:
    """Fit the path of every task in place; in regression, episodes of several drugs take no part.

    Parameters
    ----------
    subject
        int64 [N]: whose state each patient is.

    Returns
    -------
    tuple
        ``train`` and ``tuning`` with ``kernel`` [N, R, tasks] among their arrays: predictions of each episode from
        others'.
    """
    path = network.kernel
    assert path is not None
    rows = np.union1d(train.rows, tuning.rows)
    if len(rows) > path.landmarks:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[: path.landmarks])
    both = replace(train, rows=rows)
    views = _lay_landmarks(network, path, both)
    drug = _single_drugs(both)
    by_subject = not np.intersect1d(train.rows, tuning.rows).size
    crossed = np.zeros((*train.shape, len(network.tasks)), np.float32)
    for n, task in enumerate(network.tasks):
        if task.kind != "regression":
            crossed[..., n] = _fit_patients(path, n, task, views, rows, (train, tuning), subject[rows], seed)
            continue
        grid = _Grid.of(task, (train, tuning), rows, drug, path.mean.shape[1])
        fold = _folds(grid, subject[rows] if by_subject else None, seed)
        choice = _choose(views, grid, fold)
        kernel = np.tensordot(choice.weight, views, 1)
        out_of_fold = np.zeros_like(grid.value)
        for f in range(_FOLDS):
            out_of_fold[fold == f] = grid.without(fold == f).fit(kernel, choice.noise, _FILLS).predictions[fold == f]
        place, slot = np.nonzero(drug >= FIRST_KNOWN)
        crossed[rows[place], slot, n] = out_of_fold[place, drug[place, slot]]
        fitted = grid.fit(kernel, choice.noise, _FILLS)
        path.weight[n] = torch.from_numpy(choice.weight.reshape(path.weight.shape[1:]))
        path.answer[n, : len(rows)] = torch.from_numpy(fitted.answer)
        path.mean[n] = torch.from_numpy(fitted.mean)
    return train.with_scores(kernel=crossed), tuning.with_scores(kernel=crossed)


def _fit_patients(
    path: KernelPath,
    number: int,
    task: Task,
    views: Float,
    rows: Int64,
    parts: tuple[PatientData, ...],
    subject: Int64,
    seed: int,
) -> npt.NDArray[np.float32]:
    """Fit a binary or survival task in place; returns [N, R] of each episode from other subjects."""
    episodes = Episodes.of(task, number, parts, rows)
    fold = subject_folds(subject, _FOLDS, seed)
    share = np.tile(_SHARE, (path.weight.shape[1], 1)) / path.weight.shape[1]
    choice = choose(views, share, episodes, fold)
    kernel = np.tensordot(choice.weight, views, 1)
    crossed = np.zeros(parts[0].shape, np.float32)
    for f in range(_FOLDS):
        inside = fold[episodes.patient] == f
        weights, _ = fit_likelihood(kernel, episodes.take(~inside), choice.penalty)
        left_out = episodes.take(inside)
        crossed[rows[left_out.patient], left_out.slot] = (kernel @ weights)[left_out.patient]
    weights, _ = fit_likelihood(kernel, episodes, choice.penalty)
    path.weight[number] = torch.from_numpy(choice.weight.reshape(path.weight.shape[1:]))
    path.answer[number, : len(rows)] = torch.from_numpy(weights)[:, None]
    return crossed


def _lay_landmarks(network: PatientTransformer, path: KernelPath, data: PatientData) -> Float:
    """Set axes, landmarks and reaches; returns the views of the landmarks on one another [views, S, S]."""
    batch = {name: value for name, value in data.batch(data.rows).items() if not name.startswith("event_")}
    size = len(data.rows)
    with torch.no_grad():
        scaled = network.normalise(batch)[0]
        for name, bag in path.bags.items():
            assert isinstance(bag, FeatureBag)
            dense = bag.dense(batch[f"{name}_indptr"], batch[f"{name}_indices"], scaled[name], batch[f"{name}_panel"])
            inverse_sd = network.scales.get_submodule(name).get_buffer("inverse_sd").numpy()
            values = dense[batch[f"{name}_panel"] > 0].numpy().astype(np.float64)
            axes, origin, spread = _principal_axes(values, inverse_sd)
            bag.weight[:, : len(spread)] = torch.from_numpy(axes)
            path.get_buffer(f"origin_{name}")[: len(spread)] = torch.from_numpy(origin)
            evenly = np.where(np.arange(len(spread)) < _WHITENED, 1 / np.sqrt(np.maximum(spread, _LITTLE)), 0)
            path.get_buffer(f"evenly_{name}")[: len(spread)] = torch.from_numpy(evenly)
        views = []
        for name, component_SC in path.project(batch, scaled).items():
            path.get_buffer(f"landmark_{name}")[:size] = component_SC
            evenly_C, reach = path.get_buffer(f"evenly_{name}"), path.get_buffer(f"reach_{name}")
            for v, (view, of_median) in enumerate(_REACH.items()):
                if view == "product":
                    reach[v] = component_SC.square().sum(1).mean().clamp(min=_LITTLE)
                    continue
                placed_SC = component_SC * evenly_C if view == "whitened" else component_SC
                between = distance(placed_SC, placed_SC)[~torch.eye(size, dtype=torch.bool)]
                reach[v] = (of_median * between.median()).clamp(min=_LITTLE) if size > 1 else 1.0
            views += [view_SS[:, :size].numpy() for view_SS in path.views(name, component_SC)]
    return np.stack(views).astype(np.float64)


def _principal_axes(values: Float, inverse_sd: npt.NDArray[np.float32]) -> tuple[Float, Float, Float]:
    """Axes [features, C] of the largest spread in the modality's own units, the mean's place on them, that spread."""
    mean = values.mean(0)
    unit = np.divide(1.0, inverse_sd, out=np.zeros(len(inverse_sd)), where=inverse_sd > 0)
    unit /= max(float(np.sqrt(np.square((values - mean) * unit).mean())), _LITTLE)
    centred = (values - mean) * unit
    square, vectors = np.linalg.eigh(centred @ centred.T)
    kept = np.argsort(-square)[:COMPONENTS]
    kept = kept[square[kept] > _SMALLEST_SD * square.max(initial=0)]
    spread = np.sqrt(square[kept])
    axes = centred.T @ vectors[:, kept] / spread * unit[:, None]
    return axes, mean @ axes, spread


def _single_drugs(data: PatientData) -> Int64:
    """int64 [S, R]: id of the only drug of a slot's regimen, 0 where there is none or more than one."""
    regimens = data.encoded.regimens
    of_row = regimens.of_row[data.rows]
    drug = regimens.drug[of_row]
    single = (of_row >= 0) & ((drug > 0).sum(2) == 1)
    found: Int64 = np.where(single, drug.max(2), 0)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fitted:
    """``answer`` [S, D] on kernels that are not centred, ``mean`` [D], and what they predict at the landmarks."""

    answer: Float
    mean: Float
    predictions: Float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Grid:
    """Outcomes of patients under drugs [S, D], standardised by task; ``known`` where there is one."""

    value: Float
    known: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, task: Task, parts: tuple[PatientData, ...], rows: Int64, drug: Int64, n_drugs: int) -> _Grid:
        total, count = np.zeros((2, len(rows), n_drugs))
        for data in parts:
            target, weight = (data.outcomes[f"{task.name}_{part}"][rows] for part in ("target", "weight"))
            place, slot = np.nonzero((weight > 0) & (drug >= FIRST_KNOWN))
            np.add.at(total, (place, drug[place, slot]), (target[place, slot] - task.centre) / task.scale)
            np.add.at(count, (place, drug[place, slot]), 1)
        return cls(value=total / np.maximum(count, 1), known=count > 0)

    def without(self, left_out: npt.NDArray[np.bool_]) -> _Grid:
        """The same, with some pairs taken for unknown."""
        return replace(self, known=self.known & ~left_out)

    def fit(self, kernel: Float, noise: float, fills: int) -> _Fitted:
        """Shrunken drug means, deviations in units of the root of a drug's own spread, and the weights of both."""
        known = self.known.astype(np.float64)
        count, n_pairs = known.sum(0), max(known.sum(), 1.0)
        overall = (self.value * known).sum() / n_pairs
        mean = ((self.value * known).sum(0) + overall) / (count + 1)
        deviation = (self.value - mean) * known
        square = np.square(deviation).sum(0)
        scale = np.maximum((square + square.sum() / n_pairs) / (count + 1), _LITTLE) ** 0.25
        scale = scale * max(float(np.sqrt(np.square(deviation / scale).sum() / n_pairs)), _LITTLE)
        deviation = deviation / scale

        seen = np.flatnonzero(self.known.any(1))
        centre = kernel[seen].mean(0)
        centred = kernel - centre - centre[:, None] + centre[seen].mean()
        norm = max(float(np.diag(centred)[seen].mean()), _LITTLE)
        filled = deviation
        for _ in range(fills):
            alike = _likeness(filled)
            weights = _solve(centred / norm, alike, deviation, known, noise) @ alike / norm
            spread = centred @ weights
            filled = np.where(self.known, deviation, spread)
        answer = weights.copy()
        answer[seen] -= weights[seen].mean(0)
        constant = mean + (spread - kernel @ answer).mean(0) * scale
        return _Fitted(answer=answer * scale, mean=constant, predictions=mean + spread * scale)


def _likeness(deviation: Float) -> Float:
    """[D, D]: how far two drugs' deviations run together, shrunken to what all share and to what each has alone."""
    product = deviation.T @ deviation
    found: Float = _SHARED + _OWN * np.eye(len(product)) + _ALIKE * product / max(np.diag(product).mean(), _LITTLE)
    return found


def _solve(kernel: Float, alike: Float, value: Float, known: Float, noise: float) -> Float:
    """[S, D]: the weights of known pairs, zero elsewhere, by conjugate gradients."""
    weights = np.zeros_like(value)
    rest = value * known
    towards, square = rest.copy(), np.square(rest).sum()
    enough = _TOLERANCE**2 * square
    for _ in range(_STEPS):
        if square <= enough:
            break
        image = known * (kernel @ towards @ alike) + noise * towards
        step = square / (towards * image).sum()
        weights += step * towards
        rest -= step * image
        last, square = square, np.square(rest).sum()
        towards = rest + square / last * towards
    return weights


def _folds(grid: _Grid, subject: Int64 | None, seed: int) -> Int64:
    """int64 [S, D]: the fold of each pair, drawn by subject where these are given."""
    if subject is None:
        drawn: Int64 = np.random.default_rng(seed).integers(_FOLDS, size=grid.value.shape)
        return drawn
    return np.broadcast_to(subject_folds(subject, _FOLDS, seed)[:, None], grid.value.shape)


def _choose(views: Float, grid: _Grid, fold: Int64) -> _Choice:
    """Weights and noise by coordinate search, each step one that predicts better than what stood before."""
    count = np.maximum(grid.known.sum(0), 1)
    mean = (grid.value * grid.known).sum(0) / count
    precision = count / np.maximum((np.square(grid.value - mean) * grid.known).sum(0), _LITTLE)

    def loss(choice: _Choice) -> float:
        kernel = np.tensordot(choice.weight, views, 1)
        total = 0.0
        for f in range(_FOLDS):
            asked = grid.known & (fold == f)
            found = grid.without(fold == f).fit(kernel, choice.noise, 1).predictions
            total += float((np.square(found - grid.value) * precision)[asked].sum())
        return total

    modality = np.arange(len(views)) // len(VIEWS)
    best = _Choice(weight=np.tile(_SHARE, modality[-1] + 1) / (modality[-1] + 1), noise=1.0)
    least = loss(best)

    def tried() -> Iterator[_Choice]:
        for _ in range(_SWEEPS):
            yield from (replace(best, noise=noise) for noise in _NOISE if noise != best.noise)
            for part in (modality == m for m in np.unique(modality)):
                for factor in _FACTORS:
                    weight = np.where(part, factor * best.weight, best.weight)
                    yield replace(best, weight=weight / weight.sum())

    for choice in tried():
        if (found := loss(choice)) < least * (1 - _WORTH):
            best, least = choice, found
    return best
