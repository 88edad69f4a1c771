"""Deep learning for individual cancer medicine: a cohort goes in, answers about treatments come out.

The rooms, each importing only rooms before it: ``cohort``, ``encoding`` and ``records``, ``inputs``, ``model``,
``evaluation``, ``training``, ``targets``, ``bundle``, ``serving``; above them ``pipeline`` and ``cli``. This file
imports none of them, so that ``import ican_ml`` stays quick and a serving process never loads what only training needs.

ONNX Runtime from 1.29 on reports to its vendor what it runs, unless this variable is set before it is loaded.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
