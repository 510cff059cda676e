"""Linear attention against torch's softmax attention by length, and what a token costs to decode.

One thread, ``(1, 8, T, 64)`` float32, forward; the sides take turns within each round. Times are
the processor's clock, since other work may share the core. A crossover is the least length from
which on linear attention is faster; a slope is that of log time on log T from 1,024 tokens on.
Targets: not causal, crossover below 512 and 20x at 16,384; causal by chunks, below 2,048 and 6x;
slopes 1.0 +- .1. Decoding, token by token up to 65,536: constant time and memory.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import emit, spread
from generative.attention.features import elu_plus_one
from generative.attention.gau import FLASH
from generative.attention.linear import (
    LinearState,
    linear_attention,
    linear_attention_recurrent,
)

HEADS, SIZE = 8, 64
STOPS = (1_024, 16_384, 65_536)
WINDOW = 256  # tokens before a stop whose times are taken


def seconds(side: Callable[[], object]) -> float:
    start = time.process_time()
    side()
    return time.process_time() - start


def by_length(lengths: list[int], rounds: int, causal: bool) -> dict[str, list[list[float]]]:
    """Return seconds of both sides, a list of rounds for each length."""
    found: dict[str, list[list[float]]] = {"linear": [], "softmax": []}
    for length in lengths:
        q, k, v = torch.randn(3, 1, HEADS, length, SIZE, generator=torch.Generator().manual_seed(0))

        def linear(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return linear_attention(q, k, v, feature_map=elu_plus_one, causal=causal)

        def softmax(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

        sides = {"linear": linear, "softmax": softmax}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds if length > 4_096 else 4 * rounds):
            for name, side in sides.items():
                times[name].append(seconds(side))
        for name in sides:
            found[name].append(times[name][1:])
    return found


def crossover(lengths: list[int], ratios: list[float]) -> int | None:
    """Return the least length from which on softmax takes longer, None if the last does not."""
    slower = [length for length, ratio in zip(lengths, ratios, strict=True) if ratio <= 1]
    later = [length for length in lengths if length > max(slower, default=0)]
    return min(later, default=None)


def slope(lengths: list[int], times: list[float]) -> float:
    """Return the slope of log time on log length."""
    x = [math.log(length) for length in lengths]
    return statistics.linear_regression(x, [math.log(t) for t in times]).slope


def compared(lengths: list[int], rounds: int, causal: bool) -> dict[str, object]:
    found = by_length(lengths, rounds, causal)
    pairs = list(zip(found["linear"], found["softmax"], strict=True))
    ratios = [[b / a for a, b in zip(ours, peers, strict=True)] for ours, peers in pairs]
    middle = [statistics.median(x) for x in found["linear"]]
    long = [i for i, length in enumerate(lengths) if length >= 1_024]
    return {
        "crossover": crossover(lengths, [statistics.median(x) for x in ratios]),
        "ratio": {length: spread(x) for length, x in zip(lengths, ratios, strict=True)},
        "linear_ms": {n: float(f"{1e3 * t:.3g}") for n, t in zip(lengths, middle, strict=True)},
        "slope": round(slope([lengths[i] for i in long], [middle[i] for i in long]), 3),
    }


def linear_decoding() -> Iterator[int]:
    """Decode with one layer's linear attention; yield the bytes of its state after each token."""
    state: LinearState | None = None
    q, k, v = torch.randn(3, 1, HEADS, 1, SIZE, generator=torch.Generator().manual_seed(0))
    while True:
        _, state = linear_attention_recurrent(q, k, v, feature_map=elu_plus_one, state=state)
        yield sum(x.nbytes for x in state if x is not None)


def flash_decoding() -> Iterator[int]:
    """Decode with a FLASH unit of D = 256; yield the bytes of its state after each token."""
    model = FLASH(256).eval()
    state = model.new_state(1, 0)
    x = torch.randn(1, 1, 256, generator=torch.Generator().manual_seed(0))
    while True:
        model.extend(x, state)
        yield state.nbytes


def decoded(tokens: Iterator[int], stops: list[int]) -> dict[int, dict[str, object]]:
    """Return microseconds a token in the windows before the stops, and bytes of the state."""
    found: dict[int, dict[str, object]] = {}
    times: list[float] = []
    for count in range(1, max(stops) + 1):
        start = time.process_time()
        size = next(tokens)
        times.append(time.process_time() - start)
        if count in stops:
            found[count] = {"us": spread([1e6 * t for t in times[-WINDOW:]]), "bytes": size}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="the first is warm-up")
    parser.add_argument("--longest", type=int, default=16_384)
    parser.add_argument("--decode", type=int, default=max(STOPS))
    a = parser.parse_args()
    torch.set_num_threads(1)
    between = [3 * 2**i for i in range(5, 10)]  # up to 1,536, where the sides cross
    lengths = sorted(n for n in [*between, *(2**i for i in range(6, 20))] if n <= a.longest)
    stops = [stop for stop in STOPS if stop <= a.decode]
    with torch.inference_mode():
        figures = {
            "shape": [1, HEADS, "T", SIZE],
            "not_causal": compared(lengths, a.rounds, causal=False),
            "causal": compared(lengths, a.rounds, causal=True),
            "decode_linear": decoded(linear_decoding(), stops) if stops else {},
            "decode_flash": decoded(flash_decoding(), stops) if stops else {},
        }
    emit("linear_attention", figures)


if __name__ == "__main__":
    main()
