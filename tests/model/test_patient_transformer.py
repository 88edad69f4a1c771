"""What the network promises whatever its weights: only a patient's own data, in any order, whatever else is asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from ican_ml.inputs.assemble import CohortStates
from ican_ml.inputs.encode import PatientStates
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import Batch, ModelConfig, PatientTransformer
from ican_ml.records.vocabulary import Events

from .conftest import Encode

SMALL = ModelConfig(width=16, heads=2, bottleneck_tokens=2)
EVENTS = ("event_code", "event_value", "event_has_value", "event_gap", "event_age")
REGIMENS = ("treatment_drug", "treatment_class", "treatment_gene", "treatment_state", "treatment_state_known")


def answers(network: PatientTransformer, batch: Batch) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return network(batch)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_shapes(sim_network: PatientTransformer, sim_schema: InputSchema, batch: Batch) -> None:
    patients, regimens = batch["treatment_drug"].shape[:2]
    bins = next(len(task.edges) for task in sim_schema.tasks if task.kind == "survival")
    shapes = {name: tuple(output.shape) for name, output in answers(sim_network, batch).items()}
    assert shapes == {
        "response": (patients, regimens),
        "os": (patients, regimens, bins),
        "sensitivity": (patients, regimens, 2),
    }


def test_padding_changes_nothing(sim_network: PatientTransformer, batch: Batch) -> None:
    regimens = batch["treatment_drug"].shape[1]
    padded = dict(batch)
    for name, tensor in batch.items():
        if name in EVENTS or name.endswith(("_tokens", "_token_values")):
            padded[name] = functional.pad(tensor, (0, 5))
        elif name in ("treatment_drug", "treatment_class", "treatment_gene"):
            padded[name] = functional.pad(tensor, (0, 3, 0, 2))
        elif name in REGIMENS:
            padded[name] = functional.pad(tensor, (0, 0, 0, 3, 0, 2))
    found = {name: output[:, :regimens] for name, output in answers(sim_network, padded).items()}
    assert_same(found, answers(sim_network, batch))


def test_a_patient_answers_alone_as_among_others(
    sim_network: PatientTransformer, to_batch: Encode, asked: PatientStates, sim_states: CohortStates
) -> None:
    together = answers(sim_network, to_batch(asked))
    for row in (0, 1, 2, 3, 17):
        alone = answers(sim_network, to_batch(_rows(asked, [row])))
        regimens = len(asked.regimens[row])
        assert_same(alone, {name: output[row : row + 1, :regimens] for name, output in together.items()})


def test_the_order_of_events_and_tokens_is_free(sim_network: PatientTransformer, batch: Batch) -> None:
    shuffled = dict(batch)
    for prefix in ("event", *(name.removesuffix("_tokens") for name in batch if name.endswith("_tokens"))):
        names = EVENTS if prefix == "event" else (f"{prefix}_tokens", f"{prefix}_token_values")
        order = torch.randperm(batch[names[0]].shape[1], generator=torch.Generator().manual_seed(1))
        shuffled |= {name: batch[name][:, order] for name in names}
    assert_same(answers(sim_network, shuffled), answers(sim_network, batch))


def test_each_regimen_is_answered_for_itself(sim_network: PatientTransformer, batch: Batch) -> None:
    expected = answers(sim_network, batch)
    order = torch.tensor([2, 0, 3, 1])
    moved = batch | {name: batch[name][:, order] for name in REGIMENS}
    assert_same(answers(sim_network, moved), {name: output[:, order] for name, output in expected.items()})
    one = batch | {name: batch[name][:, :1] for name in REGIMENS}
    assert_same(answers(sim_network, one), {name: output[:, :1] for name, output in expected.items()})


def test_drugs_and_targets_of_a_regimen_are_sets(sim_network: PatientTransformer, batch: Batch) -> None:
    turned = batch | {name: batch[name].flip(2) for name in REGIMENS}
    assert_same(answers(sim_network, turned), answers(sim_network, batch))


@pytest.mark.parametrize("missing", ["omics", "events", "covariates", "regimen", "everything"])
def test_whatever_is_missing_the_answer_is_finite(
    sim_network: PatientTransformer, to_batch: Encode, asked: PatientStates, missing: str
) -> None:
    n = len(asked.regimens)
    without: dict[str, dict[str, object]] = {
        "omics": {"omics": {}},
        "events": {"events": None},
        "covariates": {"covariates": {}},
        "regimen": {"regimens": [[()]] * n},
    }
    without["everything"] = {key: value for change in list(without.values()) for key, value in change.items()}
    outputs = answers(sim_network, to_batch(replace(asked, **without[missing])))
    assert all(output.isfinite().all() for output in outputs.values())
    if missing == "everything":
        assert_same({name: output[:1].expand_as(output) for name, output in outputs.items()}, outputs)


def test_each_modality_may_be_missing_alone(sim_network: PatientTransformer, batch: Batch) -> None:
    expected = answers(sim_network, batch)
    for m, name in enumerate(sim_network.scales):
        found = answers(sim_network, _without(batch, name, m))
        assert all(output.isfinite().all() for output in found.values())
        assert not torch.equal(found["response"], expected["response"]), f"{name} is not used"


def test_the_values_of_an_unmeasured_modality_do_not_matter(sim_network: PatientTransformer, batch: Batch) -> None:
    for m, name in enumerate(sim_network.scales):
        masked = _without(batch, name, m)
        state = masked["treatment_state"].clone()
        state[..., m] += 3
        tokens = masked[f"{name}_tokens"]
        other = masked | {
            f"{name}_values": masked[f"{name}_values"] * 2 + 1,
            f"{name}_total": masked[f"{name}_total"] + 100,
            f"{name}_tokens": tokens.flip(0),
            f"{name}_token_values": masked[f"{name}_token_values"] + 1,
            "treatment_state": state,
        }
        assert_same(answers(sim_network, other), answers(sim_network, masked))


def test_a_fresh_network_is_its_linear_path(sim_schema: InputSchema, batch: Batch) -> None:
    torch.manual_seed(1)
    deep = PatientTransformer(SMALL, sim_schema).eval()
    linear = PatientTransformer(replace(SMALL, deep=False), sim_schema).eval()
    assert all(not output.any() for name, output in answers(deep, batch).items() if name != "sensitivity")
    with torch.no_grad():
        for part in (*deep.wide.parameters(), *deep.bias.parameters()):
            part.normal_(std=0.1)
    linear.load_state_dict({name: value for name, value in deep.state_dict().items() if name in linear.state_dict()})
    assert_same(answers(deep, batch), answers(linear, batch))


def test_regression_starts_at_the_training_mean_and_spread(sim_schema: InputSchema, batch: Batch) -> None:
    task = next(task for task in sim_schema.tasks if task.kind == "regression")
    output = answers(PatientTransformer(SMALL, sim_schema).eval(), batch)[task.name]
    np.testing.assert_allclose(output[..., 0], task.centre, rtol=1e-5)
    np.testing.assert_allclose(torch.exp(output[..., 1] / 2), task.scale, rtol=1e-5)


def test_an_unknown_drug_is_not_no_drug(
    sim_network: PatientTransformer, to_batch: Encode, asked: PatientStates
) -> None:
    regimens = [[(), ("a drug nobody has seen",)]] * len(asked.regimens)
    for output in answers(sim_network, to_batch(replace(asked, regimens=regimens))).values():
        assert not (output[:, :1] == output[:, 1:]).flatten(1).all(1).any()


def test_a_virtual_inhibitor_is_a_treatment(
    sim_network: PatientTransformer, sim_schema: InputSchema, to_batch: Encode, asked: PatientStates
) -> None:
    genes = sim_schema.modalities[0].genes[:2]
    regimens = [[(f"inhibitor:{gene}",) for gene in genes]] * len(asked.regimens)
    output = answers(sim_network, to_batch(replace(asked, regimens=regimens)))["response"]
    assert output.isfinite().all()
    assert not torch.equal(output[:, 0], output[:, 1])


def test_gradients_reach_every_parameter(sim_schema: InputSchema, batch: Batch) -> None:
    torch.manual_seed(1)
    network = PatientTransformer(SMALL, sim_schema).eval()
    with torch.no_grad():
        for parameter in (*network.wide.parameters(), *network.members[0].heads.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    torch.stack([(output * torch.randn_like(output)).sum() for output in network(batch).values()]).sum().backward()
    learnt = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert {name.partition(".")[0] for name, p in network.named_parameters() if name not in learnt} == {"embedding"}
    assert not {name for name, p in learnt.items() if p.grad is None or not p.grad.any()}


def test_padding_rows_are_never_trained(sim_schema: InputSchema, batch: Batch) -> None:
    torch.manual_seed(1)
    network = PatientTransformer(SMALL, sim_schema)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        torch.stack([output.square().mean() for output in network(batch).values()]).sum().backward()
        optimiser.step()
    for part in network.modules():
        if isinstance(part, torch.nn.Embedding):
            assert not part.weight[0].any()


def test_regularisation_rests_when_answering(sim_schema: InputSchema, batch: Batch) -> None:
    torch.manual_seed(1)
    network = PatientTransformer(replace(SMALL, modality_dropout=0.5, identity_dropout=0.5), sim_schema)
    plain = PatientTransformer(replace(SMALL, dropout=0.0), sim_schema).eval()
    with torch.no_grad():
        for parameter in (*network.wide.parameters(), *network.members[0].heads.parameters()):
            parameter.normal_(std=0.1)
    plain.load_state_dict(network.state_dict())
    assert not torch.equal(network(batch)["response"], network(batch)["response"])
    assert_same(answers(network.eval(), batch), answers(plain, batch))


def test_the_answer_is_the_mean_of_the_members(sim_schema: InputSchema, batch: Batch) -> None:
    torch.manual_seed(1)
    network = PatientTransformer(replace(SMALL, members=3), sim_schema).eval()
    with torch.no_grad():
        for member in network.members:
            for parameter in member.heads.parameters():
                parameter.normal_(std=0.1)
        each = network.member_outputs(batch)
    assert not torch.equal(each[0]["response"], each[1]["response"])
    mean = {name: torch.stack([outputs[name] for outputs in each]).mean(0) for name in each[0]}
    members = {f"{name}_members": torch.stack([outputs[name] for outputs in each], 2) for name in each[0]}
    assert_same(answers(network, batch), mean | members)


def test_without_query_layers_tokens_say_nothing_and_are_not_trained(sim_schema: InputSchema, batch: Batch) -> None:
    network = PatientTransformer(replace(SMALL, query_layers=0), sim_schema).eval()
    with torch.no_grad():
        for parameter in network.members.parameters():
            parameter.normal_()
    tokens = {name: torch.zeros_like(value) for name, value in batch.items() if name in EVENTS or "_token" in name}
    assert_same(answers(network, batch | tokens), answers(network, batch))
    sum(output.sum() for output in network.train().member_outputs(batch)[0].values()).backward()
    learns = {name for name, parameter in network.members.named_parameters() if parameter.requires_grad}
    assert learns == {name for name, parameter in network.members.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"width": 63}, "model.width"),
        ({"width": 0}, "model.width"),
        ({"heads": 0}, "model.width"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"modality_dropout": -0.1}, "model.modality_dropout"),
        ({"identity_dropout": 2.0}, "model.identity_dropout"),
        ({"token_dropout": 1.5}, "model.token_dropout"),
        ({"omics_layers": -1}, "model.omics_layers"),
        ({"query_layers": -1}, "model.query_layers"),
        ({"members": 0}, "model.members"),
        ({"columns": -1}, "model.columns"),
        ({"features_at_par": 0}, "model.features_at_par"),
        ({"bottleneck_tokens": -1}, "model.bottleneck_tokens"),
    ],
)
def test_a_nonsense_size_is_refused(change: dict[str, float], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        ModelConfig(**change)


def _rows(patients: PatientStates, rows: list[int]) -> PatientStates:
    """Some of the patients."""
    chosen = np.array(rows)
    omics = {
        name: replace(part, matrix=part.matrix.take(chosen), panel=part.panel[chosen])
        for name, part in patients.omics.items()
    }
    assert patients.events is not None
    return PatientStates(
        omics=omics,
        events=_event_rows(patients.events, chosen),
        covariates={name: [values[row] for row in rows] for name, values in patients.covariates.items()},
        regimens=[patients.regimens[row] for row in rows],
    )


def _event_rows(events: Events, rows: np.ndarray) -> Events:
    pick = np.concatenate([np.arange(events.offsets[row], events.offsets[row + 1]) for row in rows])
    return replace(
        events,
        offsets=np.concatenate([[0], np.cumsum(np.diff(events.offsets)[rows])]),
        code=events.code[pick],
        value=events.value[pick],
        unit=events.unit[pick],
        gap=events.gap[pick],
        age=events.age[rows],
    )


def _without(batch: Batch, name: str, m: int) -> Batch:
    """The batch with one modality unmeasured, its values still lying there."""
    known = batch["treatment_state_known"].clone()
    known[..., m] = 0
    return batch | {f"{name}_panel": torch.zeros_like(batch[f"{name}_panel"]), "treatment_state_known": known}
