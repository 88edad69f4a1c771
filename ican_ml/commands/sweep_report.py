"""``ican sweep-report``: what a sweep has found, as a table and a page, and its best trial as an experiment."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

    from ican_ml.commands import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "sweep-report",
        help="trials of a sweep, what mattered, and the best configuration as an experiment",
        epilog="example: ican sweep-report runs/response --experiment configs/experiment/tuned.yaml, and then: "
        "python train.py experiment=tuned. While the sweep runs it tells what there is so far.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the sweep, like runs/response; gets the page")
    parser.add_argument("--storage", metavar="URL", help="of the study's database, if FOLDER does not know it")
    parser.add_argument("--study", metavar="NAME", help="of the study, if FOLDER does not know it")
    parser.add_argument("--experiment", type=Path, metavar="FILE", help="also write the best trial there")
    parser.add_argument("--force", action="store_true", help="replace that file")
    parser.set_defaults(run=_run, extra="sweep")


def _run(parsed: argparse.Namespace) -> None:
    from ican_ml.sweep.page import TOO_FEW, write_page
    from ican_ml.sweep.summary import best_line, best_trial, importance, table, write_experiment

    study = _open(parsed.folder, parsed.storage, parsed.study)
    print(f"{table(study)}\n\n{best_line(study)}")
    shares = ", ".join(f"{name} {share:.2f}" for name, share in importance(study).items())
    print(f"what mattered: {shares}" if shares else TOO_FEW)
    parsed.folder.mkdir(parents=True, exist_ok=True)
    page = parsed.folder / "report.html"
    write_page(study, page)
    print(f"report: {page}")
    if best_trial(study) is not None:
        best = parsed.folder / f"{study.study_name}_best.yaml"
        write_experiment(study, best)
        print(f"best trial as an experiment: {best}")
    if parsed.experiment is not None:
        write_experiment(study, parsed.experiment, force=parsed.force)
        print(f"python train.py experiment={parsed.experiment.stem}")


def _open(folder: Path, storage: str | None, name: str | None) -> optuna.Study:
    from ican_ml.sweep.storage import default_url, open_study, without_password
    from ican_ml.sweep.sweeper import FILE

    known = json.loads((folder / FILE).read_text()) if (folder / FILE).exists() else {}
    if not (storage or known):
        raise ValueError(f"expected the folder of a sweep, with {FILE}, or --storage URL --study NAME, got {folder}")
    url = storage or known["storage"] or default_url(folder)
    return open_study(without_password(url), name or known.get("study") or folder.name)
