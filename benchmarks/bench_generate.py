"""Decoding against transformers' generate: the same random model, prompts and fixed length.

Targets on one thread, in tokens/s over the peer's: 0.35M parameters at batch 64: 3x, at 256: 2x;
5M at 64: 1.3x. ``roofline`` is the share of the time that the model's matrix products alone would
take at the rate that this machine reaches on them (float32, oneDNN or MKL, whichever is faster).
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from benchmarks.measure import emit, spread
from benchmarks.tiny import build, prompts, tokenizer
from posttrain.decoder import read_decoder
from posttrain.decoder_kernels import product
from posttrain.rollout import Engine, Sampling


def rate(rows: int = 2048, width: int = 256, seconds: float = 0.3) -> float:
    """Multiply-adds per second of a product whose operands stay in the cache."""
    x, weight = torch.randn(rows, width), torch.randn(2 * width, width)
    times = []
    end = time.perf_counter() + seconds
    with torch.no_grad():
        while time.perf_counter() < end:
            start = time.perf_counter()
            product(x, weight)
            times.append(time.perf_counter() - start)
    return rows * weight.numel() / statistics.median(times)


def case(shape: str, batch: int, prompt_tokens: int, new_tokens: int, repeat: int) -> dict:
    words, model = tokenizer(), build(shape).eval()
    encoded = words(prompts(batch, prompt_tokens), return_tensors="pt")["input_ids"]
    rows = encoded.tolist()
    engine, sampling = Engine(model), Sampling(max_tokens=new_tokens)
    settings = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "attention_mask": torch.ones_like(encoded),
    }

    def ours() -> None:
        done = engine.generate(rows, sampling)
        assert int(done.mask.sum()) == batch * new_tokens

    def theirs() -> None:
        with torch.no_grad():
            done = model.generate(encoded, **settings)
        assert done.shape == (batch, prompt_tokens + new_tokens)

    seconds: dict[str, list[float]] = {"monro": [], "peer": []}
    for _ in range(repeat + 1):
        for name, side in (("monro", ours), ("peer", theirs)):
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    pairs = list(zip(seconds["monro"][1:], seconds["peer"][1:], strict=True))
    tokens = batch * new_tokens
    work = read_decoder(model).size * batch * (prompt_tokens + new_tokens)
    return {
        "tokens_per_s": spread([tokens / ours for ours, _ in pairs]),
        "peer_tokens_per_s": spread([tokens / theirs for _, theirs in pairs]),
        "ratio": spread([theirs / ours for ours, theirs in pairs]),
        "roofline": float(f"{work / rate() / statistics.median([x for x, _ in pairs]):.3g}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=["0.35m:64", "0.35m:256", "5m:64"])
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=7)
    a = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, object] = {
        "settings": {"prompt_tokens": a.prompt_tokens, "new_tokens": a.new_tokens}
    }
    for name in a.cases:
        shape, batch = name.split(":")
        figures[name] = case(shape, int(batch), a.prompt_tokens, a.new_tokens, a.repeat)
    emit("generate", figures, ("torch", "transformers"))


if __name__ == "__main__":
    main()
