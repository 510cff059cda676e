"""Triton kernels against their twins in torch, on a CUDA device, in bfloat16.

Targets on an H200, forward: FLASH's mixing of d = 768 (keys of 128, values of 1,536, chunks of
256), 8 rows of 8,192 tokens, .5 ms; quadratic causal GAU of the same sizes 3.5 ms; causal linear
attention of (B, H, T, K) = (2, 16, 16384, 128) .3 ms. Milliseconds by the device's clock, kernel
and twin in turn; ``peak`` is what a call adds to the memory in use. Without a device one line says
so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from benchmarks.measure import emit, spread
from generative.attention import flash, gau, linear
from generative.attention.features import elu_plus_one
from generative.attention.kernels import cross_entropy
from generative.attention.kernels.cross_entropy import linear_cross_entropy
from generative.attention.kernels.flash_attention import flash_attention
from generative.attention.kernels.flash_mixing import flash_mixing
from generative.attention.kernels.linear_attention import causal_linear_attention
from generative.attention.kernels.squared_relu import squared_relu_attention


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A kernel, its twin and what both are given."""

    inputs: list[Tensor]
    kernel: Callable[..., Tensor]
    twin: Callable[..., Tensor]
    target_ms: float | None = None


def draw(*shapes: tuple[int, ...]) -> list[Tensor]:
    g = torch.Generator("cuda").manual_seed(0)
    kind = {"device": "cuda", "dtype": torch.bfloat16, "generator": g}
    return [torch.randn(shape, **kind).requires_grad_() for shape in shapes]


def cases() -> dict[str, Callable[[], Case]]:
    def mixing() -> Case:
        given = draw(*[(8, 8192, 128)] * 4, (8, 8192, 1536))
        return Case(
            inputs=given,
            kernel=lambda *x: flash_mixing(*x, chunk=256, causal=True),
            twin=lambda *x: gau.flash_mixing(*x, chunk=256, causal=True),
            target_ms=0.5,
        )

    def squared_relu() -> Case:
        return Case(
            inputs=draw(*[(8, 1, 8192, 128)] * 2, (8, 1, 8192, 1536)),
            kernel=lambda *x: squared_relu_attention(*x, causal=True),
            twin=lambda *x: gau.squared_relu_attention(*x, causal=True),
            target_ms=3.5,
        )

    def linear_attention() -> Case:
        return Case(
            inputs=draw(*[(2, 16, 16_384, 128)] * 3),
            kernel=lambda *x: causal_linear_attention(*x, feature_map=elu_plus_one),
            twin=lambda *x: linear.linear_attention_chunked(*x, feature_map=elu_plus_one),
            target_ms=0.3,
        )

    def softmax() -> Case:
        return Case(
            inputs=draw((2, 16, 8192, 128), *[(2, 4, 8192, 128)] * 2),
            kernel=lambda *x: flash_attention(*x, causal=True),
            twin=lambda *x: flash.flash_attention(*x, causal=True),
        )

    def losses() -> Case:
        labels = torch.arange(8192, device="cuda")

        return Case(
            inputs=draw((8192, 2048), (128_256, 2048)),
            kernel=lambda *x: linear_cross_entropy(*x, labels),
            twin=lambda *x: linear_cross_entropy(*x, labels),  # of which ``as_twin`` makes one
        )

    made = (mixing, squared_relu, linear_attention, softmax, losses)
    return {case.__name__: case for case in made}


def as_twin(call: Callable[[], object]) -> None:
    """Call while cross-entropy leaves the kernels alone, also in the backward pass."""
    with mock.patch.object(cross_entropy, "on_kernels", return_value=False):
        call()


def milliseconds(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def peak_mib(call: Callable[[], object]) -> float:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def measure(case: Case, repeat: int) -> dict[str, object]:
    def both_ways(function: Callable[..., Tensor]) -> None:
        out = function(*case.inputs)
        torch.autograd.grad(out, case.inputs, torch.ones_like(out))

    sides = {
        "kernel_forward": lambda: case.kernel(*(x.detach() for x in case.inputs)),
        "twin_forward": lambda: as_twin(lambda: case.twin(*(x.detach() for x in case.inputs))),
        "kernel_both": lambda: both_ways(case.kernel),
        "twin_both": lambda: as_twin(lambda: both_ways(case.twin)),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(repeat + 3):  # the first calls compile and warm up
        for name, side in sides.items():
            elapsed = milliseconds(side)
            if i >= 3:
                taken[name].append(elapsed)
    figures: dict[str, object] = {f"{name}_ms": spread(values) for name, values in taken.items()}
    figures |= {f"{name}_peak_mib": peak_mib(side) for name, side in sides.items()}
    return figures | {"target_forward_ms": case.target_ms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--only", choices=sorted(cases()), default=None)
    a = parser.parse_args()
    if not torch.cuda.is_available():
        emit("kernels", {"not_run": "there is no CUDA device"})
        return
    for name, case in cases().items():
        if a.only in (None, name):
            figures = measure(case(), a.repeat)
            device = torch.cuda.get_device_name()
            emit("kernels", {"case": name, "device": device, **figures}, ("torch", "triton"))


if __name__ == "__main__":
    main()
