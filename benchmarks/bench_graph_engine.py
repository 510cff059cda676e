"""Decoding in CUDA graphs: random weights of Qwen2.5-0.5B's shape in bfloat16, fixed length.

Target on an H200, for 128 prompts and 512 new tokens each: 60,000 tokens/s. A rollout's time is
all of it, prefill included; the first call, which captures the graphs, is told apart. Without a
CUDA device it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch import nn

from benchmarks.measure import emit, spread
from posttrain.rollout import Sampling
from posttrain.rollout.graph_engine import GraphEngine

SHAPE = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4_864,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
ROPE = {"rope_type": "default", "rope_theta": 1e6}


def build(device: torch.device) -> nn.Module:
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(**SHAPE, rope_parameters=ROPE)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--group-size", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=5)
    a = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_graph_engine needs a CUDA device: nothing was measured", file=sys.stderr)
        return
    g = torch.Generator().manual_seed(0)
    size = (a.prompts, a.prompt_tokens)
    prompts = torch.randint(SHAPE["vocab_size"], size, generator=g).tolist()
    engine, sampling = GraphEngine(build(torch.device("cuda"))), Sampling(max_tokens=a.new_tokens)
    tokens = a.prompts * a.group_size * a.new_tokens
    seconds = []
    for _ in range(a.repeat + 2):  # the first captures, the second is the first that replays all
        torch.cuda.synchronize()
        start = time.perf_counter()
        rollout = engine.generate(prompts, sampling, a.group_size)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        assert int(rollout.mask.sum()) == tokens
        assert bool(rollout.old_log_probs.isfinite().all())
    names = ("prompts", "group_size", "prompt_tokens", "new_tokens")
    figures = {
        "settings": {name: getattr(a, name) for name in names},
        "tokens_per_s": spread([tokens / x for x in seconds[2:]]),
        "seconds": spread(seconds[2:]),
        "first_call_s": float(f"{seconds[0]:.4g}"),
        "memory_gib": float(f"{torch.cuda.max_memory_allocated() / 2**30:.4g}"),
        "gpu": torch.cuda.get_device_name(),
    }
    emit("graph_engine", figures, ("torch", "transformers"))


if __name__ == "__main__":
    main()
