"""The ``ican`` command: make, convert, link, validate a cohort, rank its targets; export, verify, ask, serve a bundle.

Training is ``train.py``. For one patient ``ican predict`` and ``ican verify`` need numpy and onnxruntime alone: each
command imports what it uses when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import ican_ml
from ican_ml.commands import (
    audit,
    audit_log,
    convert,
    evaluate,
    export,
    link,
    predict,
    reproduce,
    serve,
    simulate,
    sweep_report,
    targets,
    validate,
    verify,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; a mistake in the input ends in one message and exit code 1."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except (ValueError, OSError) as error:
        sys.exit(f"ican {parsed.command}: {error}")
    except ImportError as error:
        sys.exit(f"ican {parsed.command}: {error.name} is not installed; pip install 'ican_ml[{parsed.extra}]'")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ican", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--version", action="version", version=f"ican_ml {ican_ml.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (
        simulate,
        convert,
        link,
        validate,
        audit,
        export,
        reproduce,
        sweep_report,
        verify,
        evaluate,
        predict,
        serve,
        targets,
        audit_log,
    ):
        command.add(commands)
    return parser


if __name__ == "__main__":
    main()
