"""The engine on generative's decoders: every mixer kind continues as its parallel pass says."""

from __future__ import annotations

import warnings

import pytest
import torch

from generative.attention.decoder_lm import DecoderConfig, DecoderLM
from generative.attention.delta_mixer import DeltaRule
from generative.attention.flash import flash_attention
from generative.attention.gated_mixers import GatedAttention, MixedChunkAttention
from generative.attention.linear_mixer import LinearAttention, RandomFeatures
from generative.attention.mixers import MixerConfig, SoftmaxAttention
from generative.attention.positions import T5, ALiBi, Rotary
from posttrain.rollout import Sampling
from posttrain.rollout.engine import Engine

KINDS: dict[str, MixerConfig] = {
    "softmax": SoftmaxAttention(heads=4, key_heads=2, positions=Rotary(), query_key_norm=True),
    "window": SoftmaxAttention(heads=4, positions=Rotary(), window=4),
    "alibi": SoftmaxAttention(heads=4, positions=ALiBi()),
    "t5": SoftmaxAttention(heads=4, positions=T5(buckets=4, farthest=8)),
    "flash": SoftmaxAttention(heads=4, positions=Rotary(), attention=flash_attention),
    "linear": LinearAttention(heads=4, chunk=4),
    "random-features": LinearAttention(heads=2, feature_map=RandomFeatures(features=32)),
    "retention": LinearAttention(heads=4, normalize=False, decays=True, chunk=4),
    "delta": DeltaRule(heads=4, chunk=4),
    "gau": GatedAttention(key_size=16, positions=Rotary()),
    "flash-gau": MixedChunkAttention(key_size=16, chunk=4, positions=Rotary()),
}
PROMPTS = [[1, 2, 3], [4], [5, 6, 7], [8, 9]]


def built(name: str) -> DecoderLM:
    config = DecoderConfig(vocabulary=13, width=32, blocks=2, mixer=KINDS[name], most_tokens=24)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = config.build()
    model.embedding.weight.data.mul_(20)  # so that the likeliest token depends on what was before
    return model.eval()


@pytest.mark.parametrize("name", KINDS)
def test_greedy_completions_are_those_of_computing_everything_again(name: str) -> None:
    model = built(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rollout = Engine(model).generate(PROMPTS, Sampling(max_tokens=9, temperature=0.0))
    told = set()
    for row, prompt in enumerate(PROMPTS):
        tokens = list(prompt)
        log_probs = []
        for _ in range(9):
            logits = model(torch.tensor([tokens]))[0, -1].detach()
            tokens.append(int(logits.argmax()))
            log_probs.append(torch.log_softmax(logits, -1).max())
        own = rollout.mask[row]
        assert rollout.tokens[row][own].tolist() == tokens[len(prompt) :]
        torch.testing.assert_close(
            rollout.old_log_probs[row][own], torch.stack(log_probs), rtol=0, atol=1e-4
        )
        told.update(tokens[len(prompt) :])
    assert len(told) > 3  # not one token over and over


@pytest.mark.parametrize("name", KINDS)
def test_groups_and_stops_change_no_completion(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(built(name))
    sampling = Sampling(max_tokens=12, stop_tokens=(1, 2, 3, 4))
    together = engine.generate(PROMPTS, sampling, 4)

    assert "stop" in together.finish_reasons
    found = together.completions()
    for p, prompt in enumerate(PROMPTS):
        alone = engine.generate([prompt], sampling, 2, seeds=[p])
        assert alone.completions() == found[4 * p : 4 * p + 2]
    monkeypatch.setattr("posttrain.rollout.engine._CACHE_BYTES", 1)  # every prompt by itself
    assert engine.generate(PROMPTS, sampling, 4).completions() == found


def test_bad_prompts_are_named() -> None:
    engine = Engine(built("softmax"))
    with pytest.raises(ValueError, match="beyond the model's 24 positions"):
        engine.generate([[1] * 20], Sampling(max_tokens=5))
    with pytest.raises(ValueError, match="prompt 0 has token 13, but the model's ids go from 0 to"):
        engine.generate([[13]], Sampling(max_tokens=5))
