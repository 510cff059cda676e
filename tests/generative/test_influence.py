"""Influences of tokens on predictions, against derivatives taken by finite differences."""

import pytest
import torch

from generative.attention.decoder_lm import DecoderConfig, DecoderLM
from generative.attention.mixers import MixerConfig
from generative.character_jobs import parse_mixer
from generative.influence import influence


@pytest.mark.parametrize("mixer", ["softmax", "linear", "delta", "gau", "flash-gau"])
def test_influences_are_norms_of_derivatives(mixer: str) -> None:
    torch.manual_seed(0)
    kind: MixerConfig = parse_mixer(mixer)
    model = DecoderLM(DecoderConfig(vocabulary=8, width=8, blocks=1, mixer=kind, tied=False))
    model = model.double()
    tokens = torch.tensor([1, 2, 3, 4, 5])  # all different: a row of the table is one place
    found = influence(model, tokens)
    norms = torch.zeros(4, 4, dtype=torch.float64)
    table, step = model.embedding.weight, 1e-6
    for s in range(4):
        for feature in range(8):
            slopes = torch.zeros(4, dtype=torch.float64)
            for sign in (1, -1):
                with torch.no_grad():
                    table[tokens[s], feature] += sign * step
                    log_probs = torch.log_softmax(model(tokens[None, :4])[0], -1)
                    slopes += sign * log_probs.gather(1, tokens[1:, None])[:, 0] / (2 * step)
                    table[tokens[s], feature] -= sign * step
            norms[:, s] += slopes**2
    norms = norms.sqrt()
    torch.testing.assert_close(
        found.double(), norms / norms.sum(1, keepdim=True), rtol=1e-5, atol=1e-6
    )
    assert found.triu(1).eq(0).all()
    assert all(parameter.grad is None for parameter in model.parameters())
