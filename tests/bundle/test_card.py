"""The model card: told in full, restored as it was, and no small count in it."""

import json
from typing import Any

import pytest

from ican_ml.bundle.card import OPEN_FIELDS, ModelCard, suppressed


@pytest.fixture
def card() -> ModelCard:
    auroc = {"estimate": 0.81, "low": 0.79, "high": 0.83}
    group: dict[str, Any] = {"rows": 20, "subjects": 15, "events": 7, "metrics": {"auroc": auroc}}
    undefined = {"auroc": {"estimate": None, "low": None, "high": None}}
    sets = {"asked_coverage": 0.9, "overall": {"metrics": {"coverage": auroc, "mean_size": auroc}}}
    return ModelCard(
        name="demo",
        cohort={"Name": "simulated", "Subjects": 3000},
        subjects=suppressed({"LUNG": 1200, "RARE": 9, "BREAST": 1300}),
        inputs={"Modalities": ["mutation"], "Covariates": [], "Treatments": 24},
        performance={
            "response": {
                "kind": "binary",
                "overall": group,
                "by_indication": {"LUNG": {**group, "metrics": undefined}},
                "baselines": {"ridge": group},
                "sets": sets,
            }
        },
        versions={"ican_ml": "1.0"},
    )


def test_small_counts_are_not_told(card: ModelCard) -> None:
    assert list(card.subjects.items()) == [("BREAST", 1300), ("LUNG", 1200), ("RARE", "fewer than 10")]
    assert "| RARE | fewer than 10 |" in card.text()


def test_it_tells_what_a_reader_asks(card: ModelCard) -> None:
    text = card.text()
    assert "| model, all | 15 | 0.810 [0.790, 0.830] |" in text
    assert "| model, LUNG | 15 |  |" in text
    assert "| ridge | 15 |" in text
    assert "hold the truth in 90%: 0.810" in text
    assert "- Covariates: none" in text
    for heading in ("Intended use", "Limits", "To be filled in by the deployer"):
        assert f"## {heading}" in text
    assert all(f"- {field}:" in text for field in OPEN_FIELDS)


def test_it_is_restored_as_it_was(card: ModelCard) -> None:
    document = json.loads(json.dumps(card.to_json()))
    assert ModelCard.from_json(document).text() == card.text()
    with pytest.raises(ValueError, match="expected format"):
        ModelCard.from_json({**document, "format": "other"})
