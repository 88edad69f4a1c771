"""What every network in torch keeps: the checks of :mod:`ican_ml.invariants.answers`, whatever its weights."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from ican_ml.inputs.schema import InputSchema
from ican_ml.invariants.answers import Answer, answer_checks
from ican_ml.invariants.checks import Arrays, Checks, run_all

_SPREAD = 0.05


def check_model(network: nn.Module, schema: InputSchema, *, seed: int = 0) -> None:
    """Run every check of :func:`model_checks`.

    Raises
    ------
    InvariantError
        Naming every invariant that does not hold, what was changed, and how far the answers differ.
    """
    run_all(model_checks(network, schema, seed=seed))


def model_checks(network: nn.Module, schema: InputSchema, *, seed: int = 0) -> Checks:
    """Checks of a network, by name.

    Parameters
    ----------
    network
        Maps the input arrays, as tensors by name, to outputs ``[B, R, ...]`` by task. It stays as it is: a copy in
        evaluation mode is asked, in which parameters that are all zero (a head may start there) are drawn at random, so
        that every input moves the answers.
    schema
        What the network was made for; the patients are invented from it.
    seed
        Of the patients, the orders tried and the numbers drawn.
    """
    return answer_checks(_asked(_without_zeros(network, seed)), schema, seed=seed)


def _asked(network: nn.Module) -> Answer:
    def answer(arrays: Arrays) -> Arrays:
        batch = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
        with torch.inference_mode():
            return {name: output.numpy() for name, output in network(batch).items()}

    return answer


def _without_zeros(network: nn.Module, seed: int) -> nn.Module:
    drawn = copy.deepcopy(network).cpu().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in drawn.parameters():
            if not parameter.any():
                parameter.normal_(std=_SPREAD, generator=generator)
        for part in drawn.modules():
            if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                part.weight[part.padding_idx] = 0
    return drawn
