"""Peak memory and time of an SFT step: as it is, with activation checkpointing, with LoRA, both.

Packed rows of ``--length`` tokens, forward, backward and AdamW's update, on a model of many layers,
as real ones have. Memory is that of torch's tensors, by its profiler: what the step adds at its
peak to the loaded model, gradients and optimizer state among it, and what of it stays. Target: with
checkpointing less than half. The losses with it and without must be the same bits.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import emit, spread
from benchmarks.tiny import SHAPES, build
from launch.optimizers import AdamW
from launch.runtime import Runtime, RuntimeConfig
from posttrain.adapters import LoRA, with_adapters
from posttrain.log_probs import token_log_probs
from posttrain.models import LanguageModel

KINDS = ("plain", "checkpointing", "lora", "lora and checkpointing")
RANK = 8


def live(events: list[Any]) -> tuple[float, float]:
    """Return MiB of tensors at their peak and at the end, of a profiler's events."""
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return round(peak / 2**20, 1), round(total / 2**20, 1)


def built(a: argparse.Namespace, kind: str) -> nn.Module:
    SHAPES["deep"] = SHAPES["0.35m"] | {"hidden_size": 128, "num_hidden_layers": a.layers}
    model = build("deep").train()
    if "lora" not in kind:
        return model
    lm = LanguageModel(model, None, 0, ())  # type: ignore[arg-type]  # no tokenizer is needed
    return with_adapters(lm, LoRA(rank=RANK)).model


def measure(a: argparse.Namespace, kind: str) -> dict[str, object]:
    """Return MiB, seconds and loss of a step."""
    model = built(a, kind)
    config = RuntimeConfig(activation_checkpointing="checkpointing" in kind, threads=1)
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 60, (a.rows, a.length), generator=g)
    with Runtime(config) as run:
        prepared, optimizer = run.prepare(model, AdamW().build(model))

        def step() -> None:
            run.backward(-token_log_probs(prepared, tokens).mean())
            run.step(optimizer)

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            step()
        events = seen.profiler.kineto_results.events()
        peak, stays = live([event for event in events if event.name() == "[memory]"])
        loss = run.loss.item()
        seconds = []
        for _ in range(a.repeat):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
    return {"peak_mib": peak, "stays_mib": stays, "step_s": spread(seconds), "loss": loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=3)
    a = parser.parse_args()
    found = {kind: measure(a, kind) for kind in KINDS}
    for plain, again in (KINDS[:2], KINDS[2:]):
        assert found[plain]["loss"] == found[again]["loss"], f"{again} changes the loss"
    names = ("layers", "rows", "length")
    emit("memory", {"settings": {name: getattr(a, name) for name in names}, **found})


if __name__ == "__main__":
    main()
