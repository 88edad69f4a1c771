"""Benchmarks that need what a machine may lack say so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def test_without_a_gpu_nothing_is_measured_and_one_sentence_says_why() -> None:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--check"]
    done = subprocess.run(command, env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("benchmarks/gpu.py: nothing to measure here: ")
    assert done.stderr.count("\n") == 1


def test_the_step_that_is_measured_on_a_gpu_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with what stands in the configuration today."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_step

    indptr, indices, tokens = torch.tensor([0, 2, 3]), torch.tensor([0, 4, 1]), torch.tensor([[0, 4], [1, -1]])
    config = gpu_step.large()
    assert config.width == 128
    gpu_step.trainer(config, 5, indptr, indices, torch.ones(3), tokens, torch.ones(2, 2))()
