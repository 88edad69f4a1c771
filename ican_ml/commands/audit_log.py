"""``ican audit-log verify``: is the service's log of who asked the one that was written?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ican_ml.commands import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("audit-log", help="check the service's log of who asked")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    verify = actions.add_parser("verify", help="check that no line was changed, removed or put in")
    verify.add_argument("log", type=Path, metavar="LOG", help="file that `ican serve --audit-log` wrote")
    verify.add_argument(
        "--last", metavar="SHA256", help="of the last line, as kept elsewhere: tells whether the end was cut off"
    )
    verify.set_defaults(run=_run, extra="serve")


def _run(parsed: argparse.Namespace) -> None:
    from ican_ml.serving.audit_log import AuditLogError, verify_audit_log

    n, last = verify_audit_log(parsed.log)
    if parsed.last is not None and parsed.last != last:
        raise AuditLogError(f"{parsed.log.name}: expected the last line to be {parsed.last:.80}, got {last or 'none'}")
    print(f"{n:,} lines, each as it was written; the last is {last or 'none'}")
