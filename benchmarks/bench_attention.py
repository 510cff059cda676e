"""Softmax attention: FlashAttention's algorithm in plain torch against the plain form.

Peak memory (torch's tensors, by its profiler, over the inputs) and seconds of the processor,
forward, and forward with backward, interleaved: ``naive.softmax_attention``,
``flash.flash_attention``, and ``softmax.attention``, torch's fused kernel, which is written in C++.
Target at T = 8,192: at most 1/20 of naive's peak and 1.5 times its time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import emit, spread
from generative.attention.flash import flash_attention
from generative.attention.naive import softmax_attention
from generative.attention.softmax import attention, attention_backend
from launch.live_bytes import live_bytes

SIDES: dict[str, Callable[..., Tensor]] = {
    "naive": softmax_attention,
    "flash": flash_attention,
    "torch": attention,
}


def passes(side: Callable[..., Tensor], inputs: list[Tensor], causal: bool) -> dict[str, float]:
    """Return seconds of a forward pass alone, and of a forward and a backward pass."""
    start = time.process_time()
    with torch.no_grad():
        side(*inputs, causal=causal)
    middle = time.process_time()
    out = side(*inputs, causal=causal)
    torch.autograd.grad(out, inputs, torch.ones_like(out))
    return {"forward": middle - start, "both": time.process_time() - middle}


def peaks(side: Callable[..., Tensor], inputs: list[Tensor], causal: bool) -> dict[str, float]:
    """Return MiB at the peak of the same two."""
    with live_bytes() as forward, torch.no_grad():
        side(*inputs, causal=causal)
    with live_bytes() as both:
        out = side(*inputs, causal=causal)
        torch.autograd.grad(out, inputs, torch.ones_like(out))
    return {"forward": forward.peak / 2**20, "both": both.peak / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--repeat", type=int, default=5)
    a = parser.parse_args()
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    shape = (1, a.heads, a.length, a.width)
    inputs = [torch.randn(shape, generator=g).requires_grad_() for _ in range(3)]
    mib = {name: peaks(side, inputs, a.causal) for name, side in SIDES.items()}
    rounds = [
        {name: passes(side, inputs, a.causal) for name, side in SIDES.items()}
        for _ in range(a.repeat)
    ]
    figures: dict[str, object] = {
        "settings": {name: getattr(a, name) for name in ("length", "heads", "width", "causal")},
        "backend": attention_backend(*inputs, causal=a.causal).name,
    }
    for part in ("forward", "both"):
        figures[part] = {
            "peak_mib": {name: round(found[part], 1) for name, found in mib.items()},
            "naive_over_flash_peak": round(mib["naive"][part] / mib["flash"][part], 1),
            "seconds": {name: spread([r[name][part] for r in rounds]) for name in SIDES},
            "flash_over_naive": spread([r["flash"][part] / r["naive"][part] for r in rounds]),
            "flash_over_torch": spread([r["flash"][part] / r["torch"][part] for r in rounds]),
        }
    emit("attention", figures)


if __name__ == "__main__":
    main()
