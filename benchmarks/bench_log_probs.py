"""``shared_prompt_log_probs`` against the plain pass, and both against transformers' forward.

Forward and backward of a GRPO batch: prompts of 256 tokens, completions of 32, 16 rows. Target:
sharing takes at most 1 / 2.5 of the plain pass. The peer is what a trainer would write: the
model's forward, log-softmax of the completion's logits, gather. ``roofline`` is the share of our
time that the matrix products alone would take at the rate this machine reaches on them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.bench_generate import rate
from benchmarks.measure import emit, spread
from benchmarks.tiny import build
from posttrain.decoder import read_decoder
from posttrain.log_probs import shared_prompt_log_probs, token_log_probs


def batch(a: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    width = a.prompt_tokens + a.new_tokens
    tokens = torch.randint(4, 60, (a.prompts * a.group, width), generator=g)
    groups = tokens.view(a.prompts, a.group, width)
    groups[:, :, : a.prompt_tokens] = groups[:, :1, : a.prompt_tokens]
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, a.prompt_tokens :] = True
    return tokens, mask, torch.full((a.prompts,), a.prompt_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="0.35m")
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=15)
    a = parser.parse_args()
    torch.set_num_threads(1)
    model = build(a.shape).train()
    tokens, mask, lengths = batch(a)

    def shared() -> Tensor:
        return shared_prompt_log_probs(
            model, tokens, mask, group_size=a.group, prompt_lengths=lengths
        )

    def plain() -> Tensor:
        return token_log_probs(model, tokens, mask)

    def peer() -> Tensor:
        logits = model(tokens, logits_to_keep=a.new_tokens + 1, use_cache=False).logits[:, :-1]
        return logits.log_softmax(-1).gather(2, tokens[:, -a.new_tokens :, None])

    sides: dict[str, Callable[[], Tensor]] = {"shared": shared, "plain": plain, "peer": peer}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(a.repeat + 2):
        for name, side in sides.items():
            model.zero_grad()
            start = time.perf_counter()
            side().sum().backward()
            seconds[name].append(time.perf_counter() - start)
    ours, others, peers = (values[2:] for values in seconds.values())
    decoder = read_decoder(model)
    head = decoder.head.weight.numel()
    fed = a.prompts * (a.prompt_tokens + a.group * (a.new_tokens - 1))
    work = 3 * (decoder.size - head) * fed + 4 * head * int(mask.sum())
    names = ("shape", "prompts", "group", "prompt_tokens", "new_tokens")
    figures = {
        "settings": {name: getattr(a, name) for name in names},
        "shared_s": spread(ours),
        "plain_s": spread(others),
        "peer_s": spread(peers),
        "plain_over_shared": spread([b / x for x, b in zip(ours, others, strict=True)]),
        "peer_over_shared": spread([b / x for x, b in zip(ours, peers, strict=True)]),
        "roofline": float(f"{work / rate() / statistics.median(ours):.3g}"),
    }
    emit("log_probs", figures, ("torch", "transformers"))


if __name__ == "__main__":
    main()
