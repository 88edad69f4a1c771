"""Deep learning for individual cancer medicine: a cohort goes in, answers about treatments come out.

The rooms, each importing only rooms before it: ``cohort``, ``encoding`` and ``records``, ``inputs``, ``model``,
``evaluation``, ``training``, ``targets``, ``bundle``, ``serving``; above them ``pipeline`` and ``cli``. This file
imports none of them, so that ``import ican_ml`` stays quick and a serving process never loads what only training needs.
"""

__version__ = "0.1.0"
