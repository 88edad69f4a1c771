"""A training step of the demo's network in its large configuration on a GPU, and what the tokens of its rows cost.

The network of `configs/model/large.yaml` with the members of the demo, on counts of 20,000 genes with a record of 96
events: forward, backward and AdamW on one batch of 256 patients. Torch and NumPy only.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ican_ml.inputs.schema import InputSchema, ModalitySchema, Task
from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
from ican_ml.resources import resource_folder

PATIENTS, TOKENS, EVENTS, MEMBERS = 256, 32, 96, 2


def step() -> dict[str, Any]:
    """Median times of the step and of the tokens of its rows."""
    from gpu_cases import ENTRIES, FEATURES, ROWS, SEED, TARGET, matrix, milliseconds, scale_of

    from ican_ml.encoding.rank_tokens import row_tokens

    resident, scale, rng = matrix(ROWS, ENTRIES), scale_of(), np.random.default_rng(SEED)
    chosen = [rng.integers(0, ROWS, PATIENTS) for _ in range(8)]
    tokens_ms = milliseconds(
        *(partial(row_tokens, resident, rows, scale, TOKENS, target_sum=TARGET) for rows in chosen)
    )
    part = resident.rows(0, PATIENTS)
    indptr, indices, values = (torch.from_dlpack(each) for each in (part.indptr, part.indices, part.values))
    tokens, token_values, _ = map(torch.from_dlpack, row_tokens(part, np.arange(PATIENTS), scale, TOKENS))
    config = large()
    train = trainer(config, FEATURES, indptr, indices, values, tokens, token_values)
    network = f"width {config.width}, {config.members} members, {PATIENTS} patients, {TOKENS} tokens, {EVENTS} events"
    return {"ms": milliseconds(train), "tokens ms": tokens_ms, "network": network}


def large() -> ModelConfig:
    """`configs/model/large.yaml`, whose values are JSON as well, with the demo's members."""
    lines = (resource_folder("configs") / "model" / "large.yaml").read_text().splitlines()
    fields = dict(line.split(": ") for line in lines if line and line[0] != "#")
    return ModelConfig(**{name: json.loads(value) for name, value in fields.items()}, members=MEMBERS)


def trainer(
    config: ModelConfig,
    features: int,
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    tokens: Tensor,
    token_values: Tensor,
) -> Any:
    """A function that trains one step, on the device of its arguments."""
    network = PatientTransformer(config, _schema(features)).to(indptr.device).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    batch = _batch(indptr, indices, values, tokens, token_values)
    target = torch.ones(indptr.shape[0] - 1, 1, device=indptr.device)

    def train() -> None:
        outputs = network.member_outputs(batch)
        loss = torch.stack([functional.binary_cross_entropy_with_logits(o["response"], target) for o in outputs]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return train


def _schema(features: int) -> InputSchema:
    names, numbers = tuple(map(str, range(features))), np.ones(features, np.float32)
    modality = ModalitySchema(
        name="expression",
        kind="count",
        explicit=False,
        features=names,
        genes=names,
        mean=numbers,
        inverse_sd=numbers,
        rank_scale=numbers,
        panels={"all": None},
        max_tokens=TOKENS,
    )
    none = np.zeros(0, np.float32)
    return InputSchema(
        modalities=(modality,),
        genes=names,
        drugs=("drug",),
        classes=("class",),
        targets={"drug": names[:2]},
        class_of={"drug": "class"},
        vocabulary=None,
        aggregates=None,
        max_events=EVENTS,
        max_per_code=EVENTS,
        covariates=(),
        summary_mean=none,
        summary_inverse_sd=none,
        tasks=(Task(name="response", kind="binary"),),
    )


def _batch(indptr: Tensor, indices: Tensor, values: Tensor, tokens: Tensor, token_values: Tensor) -> dict[str, Tensor]:
    """The network's inputs for these rows, each with a record of events that it does not know and one drug."""
    n, device = indptr.shape[0] - 1, indptr.device
    events, regimen = torch.ones(n, EVENTS, device=device), torch.ones(n, 1, 2, dtype=torch.int64, device=device)
    return {
        "expression_indptr": indptr - indptr[0],
        "expression_indices": indices.long(),
        "expression_values": values,
        "expression_total": torch.stack([row.sum() for row in values.split(indptr.diff().tolist())]),
        "expression_panel": torch.ones(n, dtype=torch.int64, device=device),
        "expression_tokens": tokens.long() + 1,
        "expression_token_values": token_values,
        "event_code": events.long(),
        **{f"event_{name}": events for name in ("value", "has_value", "gap", "age")},
        "summary": torch.zeros(n, 0, device=device),
        "treatment_drug": 2 * regimen[..., :1],
        "treatment_class": 2 * regimen[..., :1],
        "treatment_gene": 2 * regimen,
        "treatment_state": regimen[..., None].float(),
        "treatment_state_known": regimen[..., None].float(),
    }
