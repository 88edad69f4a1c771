"""The record's embedding: what training teaches it about codes that no training patient has."""

import torch

from ican_ml.model.record import RecordEmbedding
from ican_ml.records.vocabulary import PADDING, UNKNOWN, Vocabulary


def test_codes_that_only_stand_above_others_are_trained_and_never_with_a_value() -> None:
    torch.manual_seed(0)
    vocabulary = Vocabulary(codes=("DX", "DX//C50", "DX//C50.9", "LAB"), normal={}, parents={})
    embed = RecordEmbedding(vocabulary, 0, 8, 0.0, code_dropout=0.5)
    code, one = torch.tensor([[vocabulary.id_of("DX//C50.9"), PADDING]]), torch.ones(1, 2)
    for _ in range(50):
        tokens, mask = embed(code, one, one, one, one, torch.empty(1, 0))
        assert mask.tolist() == [[True, True, False]]
        tokens.square().sum().backward()
    code_trained, value_trained = (table.weight.grad.any(1) for table in (embed.code, embed.value))
    above = [vocabulary.id_of("DX"), vocabulary.id_of("DX//C50"), UNKNOWN]
    assert code_trained.nonzero().flatten().tolist() == sorted([*above, vocabulary.id_of("DX//C50.9")])
    assert not value_trained[above].any()
    assert value_trained[vocabulary.id_of("DX//C50.9")]
    assert torch.equal(
        embed.eval()(code, one, one, one, one, torch.empty(1, 0))[0],
        embed(code, one, one, one, one, torch.empty(1, 0))[0],
    )
