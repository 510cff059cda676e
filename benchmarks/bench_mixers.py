"""The mixers of ``char-lm`` in one decoder: tokens per processor second, training and decoding.

A training pass is forward, loss and backward of 4,096 tokens in windows of 256 and of 2,048;
decoding appends one token to one sequence that has 256, or 4,096, behind it. Mixers are
interleaved, and are each other's peers. Bytes are those of the state behind the longer sequence.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.measure import emit, spread
from generative.attention.decoder_lm import DecoderLM
from generative.attention.label_smoothing import smoothed_cross_entropy
from generative.character_jobs import parse_mixer
from generative.recipes import char_lm

MIXERS = ("softmax", "flash", "linear", "retention", "delta", "gau", "flash-gau")
TOKENS = 4_096
DECODED = 8


def built(mixer: str) -> DecoderLM:
    """Return the recipe's model with another mixer, and room for long sequences."""
    config = replace(char_lm().model, mixer=parse_mixer(mixer), most_tokens=2 * TOKENS)
    return config.build()


def trained(model: DecoderLM, length: int, data: Tensor) -> float:
    """Return tokens per second of a pass with its gradient."""
    tokens = data.view(-1, length)
    start = time.process_time()
    smoothed_cross_entropy(model(tokens), tokens).mean().backward()
    seconds = time.process_time() - start
    model.zero_grad()
    return TOKENS / seconds


@torch.no_grad()
def decoded(model: DecoderLM, behind: int, data: Tensor) -> tuple[float, int]:
    """Return tokens per second of single tokens, and the bytes of the state."""
    state = model.new_state(1, behind + DECODED)
    model.extend(data[None, :behind], state)
    start = time.process_time()
    for i in range(DECODED):
        model.extend(data[None, i : i + 1], state)
    return DECODED / (time.process_time() - start), state.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    data = torch.randint(256, (TOKENS,), generator=torch.Generator().manual_seed(0))
    models = {mixer: built(mixer) for mixer in MIXERS}
    found: dict[str, dict[str, list[float]]] = {mixer: {} for mixer in MIXERS}
    for number in range(rounds + 1):
        for mixer, model in models.items():
            figures = {f"train/{length}": trained(model, length, data) for length in (256, 2_048)}
            for behind in (256, TOKENS):
                figures[f"decode/{behind}"], held = decoded(model, behind, data)
            for name, value in figures.items() if number else ():  # the first round warms up
                found[mixer].setdefault(name, []).append(value)
            found[mixer]["state_bytes"] = [held]
    rows = {
        mixer: {"parameters": sum(p.numel() for p in models[mixer].parameters())}
        | {name: spread(values) for name, values in figures.items()}
        for mixer, figures in found.items()
    }
    emit("mixers", {"tokens_per_second": rows})


if __name__ == "__main__":
    main()
