"""What a study has found: its trials in lines and a table, what mattered, and the best trial as an experiment."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from ican_ml.evaluation.table import Cell, summary_table
from ican_ml.sweep.queue import made_of
from ican_ml.sweep.storage import quiet
from ican_ml.sweep.trial import ERROR, PRUNED_AT

if TYPE_CHECKING:
    import optuna

_SHOWN = 20
_FEW = 4


def trial_line(study: optuna.Study, number: int) -> str:
    """One trial in one line: value or how else it ended, the best so far, parameters."""
    trial = study.trials[number]
    best = best_trial(study)
    parts = [f"trial {number}: {ending(trial)}", f"best {best.value:.5f} (trial {best.number})" if best else ""]
    params = _brief(trial.params)
    return f"{', '.join(part for part in parts if part)}; {params}"


def ending(trial: optuna.trial.FrozenTrial) -> str:
    """How a trial ended."""
    match trial.state.name:
        case "COMPLETE":
            return f"{trial.value:.5f}"
        case "PRUNED":
            return f"pruned at {trial.user_attrs.get(PRUNED_AT, 'an epoch')}"
        case "FAIL":
            error = trial.user_attrs.get(ERROR)
            return f"failed: {error}" if error else "lost with its worker, and run again"
    return "being run" if trial.state.name == "RUNNING" else "waiting"


def best_trial(study: optuna.Study) -> optuna.trial.FrozenTrial | None:
    """The complete trial with the lowest value."""
    from optuna.trial import TrialState

    complete = study.get_trials(states=(TrialState.COMPLETE,))
    return min(complete, key=lambda trial: (trial.value, trial.number), default=None)


def best_value(study: optuna.Study) -> float | None:
    """Its value."""
    best = best_trial(study)
    return best.value if best else None


def best_line(study: optuna.Study) -> str:
    """What there is to say of the best trial."""
    best = best_trial(study)
    if best is None:
        return "no trial is complete"
    params = _brief(best.params)
    return f"best: trial {best.number}, tuning loss {best.value:.5f}; {params}"


def rows(study: optuna.Study, most: int | None = None) -> list[dict[str, Cell]]:
    """Trials, the best first, those that were pruned, failed or lost after them."""
    order = {"COMPLETE": 0, "PRUNED": 1, "RUNNING": 2, "WAITING": 3, "FAIL": 4}

    short = short_names([name for trial in study.trials for name in trial.params])

    def place(trial: optuna.trial.FrozenTrial) -> tuple[int, float, int]:
        complete = trial.state.name == "COMPLETE" and trial.value is not None
        return order[trial.state.name], float(trial.value or 0.0) if complete else 0.0, trial.number

    return [
        {
            "trial": str(trial.number),
            "tuning loss": ending(trial),
            **{short[name]: brief(value) for name, value in trial.params.items()},
        }
        for trial in sorted(study.trials, key=place)[:most]
    ]


def table(study: optuna.Study, most: int = _SHOWN) -> str:
    """The first of them as text."""
    n = len(study.trials)
    return summary_table(rows(study, most)) + (f"\n... and {n - most} more" if n > most else "")


def importance(study: optuna.Study) -> dict[str, float]:
    """Share of each parameter in what sets the good trials apart (PED-ANOVA: Watanabe, Bansal, Hutter 2023,
    arXiv:2304.10255); empty where too few are complete to say.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < _FEW or len({trial.value for trial in complete}) < 2:
        return {}
    with quiet():
        return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))


def experiment(study: optuna.Study, name: str) -> str:
    """The best trial as an experiment file, in the form of those in ``configs/experiment``.

    Raises
    ------
    ValueError
        If no trial is complete.
    """
    best, made = best_trial(study), made_of(study)
    if best is None:
        raise ValueError(f"sweep: expected a complete trial in study {study.study_name!r}, got none yet")
    start = made.get("experiment", {})
    groups = dict(start.get("groups", {}))
    settings: dict[str, Any] = _copied(start.get("settings", {}))
    for parameter, value in best.params.items():
        if parameter in made.get("groups", ()):
            groups[parameter] = value
        else:
            _put(settings, parameter, value)
    defaults: list[Any] = [start["experiment"]] if start.get("experiment") else []
    defaults += [{f"override /{group}": choice} for group, choice in groups.items()]
    document: dict[str, Any] = {"defaults": [*defaults, "_self_"], "name": name, **settings}
    finished = sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials)
    head = (
        "# @package _global_\n"
        f"# The best of {finished} trials of the sweep {study.study_name!r}: trial {best.number}, tuning loss "
        f"{best.value:.5f}.\n"
    )
    return head + OmegaConf.to_yaml(OmegaConf.create(document))


def write_experiment(study: optuna.Study, path: Path, *, force: bool = True) -> None:
    """Write it; the file's name is the experiment's, and that of its runs.

    Raises
    ------
    ValueError
        If there is such a file and ``force`` is not set.
    """
    if path.suffix != ".yaml":
        raise ValueError(f"--experiment: expected a file like configs/experiment/NAME.yaml, got {path}")
    if path.exists() and not force:
        raise ValueError(f"--experiment: expected a new file, got {path.name}, which is there; --force replaces it")
    text = experiment(study, path.stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def brief(value: Any) -> str:
    """A parameter's value in few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if value in (None, True) else str(value)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Each name -> its last part, where no other ends so."""
    found = {name: name.rpartition(".")[2] for name in names}
    last = list(found.values())
    return {name: short if last.count(short) == 1 else name for name, short in found.items()}


def _brief(params: dict[str, Any]) -> str:
    short = short_names(params)
    return " ".join(f"{short[name]}={brief(value)}" for name, value in params.items())


def _copied(settings: Any) -> Any:
    return {name: _copied(value) for name, value in settings.items()} if isinstance(settings, dict) else settings


def _put(settings: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        settings = settings.setdefault(part, {})
    settings[last] = value
