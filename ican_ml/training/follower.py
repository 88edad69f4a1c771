"""A process that process 0 of a run has started on its machine: ``python -m ican_ml.training.follower cpu|gpu RANK``.

It knows nothing of the run but what process 0 sends, and ends with it.
"""

from __future__ import annotations

import os
import sys
import threading

from ican_ml.training.deep import follow
from ican_ml.training.distributed import Ranks, gathered, meet


def main() -> None:
    """Join, train when asked to, end."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    rank = int(os.environ["RANK"])
    try:
        ranks = meet(Ranks(rank=rank, size=int(os.environ["WORLD_SIZE"]), local=rank), on_cpu=sys.argv[1] == "cpu")
        gathered(None, ranks.size)
        follow(ranks)
    except (RuntimeError, ValueError):
        sys.exit(1)  # process 0 says why


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
