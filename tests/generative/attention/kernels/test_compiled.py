"""The kernels compile for an H200's architecture, which needs no GPU, and fit into it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.uint8: "u8",
}
SHARED = 227 * 1024  # bytes that a program may have there

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux"),
]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> Iterator[list[Any]]:
    """Compile in the place of a launch; yield what was compiled."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found: list[Any] = []

    def at(kernel: JITFunction, grid: object) -> Callable[..., None]:
        def compiled(*given: object, **named: object) -> None:
            words = ("num_warps", "num_stages", "enable_fp_fusion")
            options = {word: named.pop(word) for word in words if word in named}
            values = dict(zip([p.name for p in kernel.params], given, strict=False)) | named
            signature, constants, hints = {}, {}, {}
            for i, parameter in enumerate(kernel.params):
                value = values[parameter.name]
                if parameter.is_constexpr or value is None:
                    signature[parameter.name] = "constexpr"
                    constants[parameter.name] = value
                elif isinstance(value, torch.Tensor):
                    signature[parameter.name] = "*" + NAMES[value.dtype]
                    hints[i,] = [["tt.divisibility", 16]]
                else:
                    signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
                    if isinstance(value, int) and value % 16 == 0:
                        hints[i,] = [["tt.divisibility", 16]]
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
            target = GPUTarget("cuda", 90, 32)
            found.append(triton.compile(source, target=target, options=options))

        return compiled

    monkeypatch.setattr(JITFunction, "__getitem__", at)
    yield found
    assert found
    for kernel in found:
        assert kernel.asm["cubin"]
        assert kernel.metadata.shared <= SHARED


def empty(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


def on_tensor_cores(kernels: list[Any]) -> list[bool]:
    return ["wgmma.mma_async" in kernel.asm["ptx"] for kernel in kernels]


def test_cross_entropy_compiles(launched: list[Any]) -> None:
    from generative.attention.kernels import _triton_cross_entropy as kernels

    logits, numbers = empty(512, 128_000), empty(512, dtype=torch.float32)
    labels = empty(512, dtype=torch.int64)
    kernels.normalisers(logits, logits[0], labels, numbers, 1.0)
    kernels.replace_by_gradients(logits, None, labels, numbers, numbers, numbers, 1.0)


@pytest.mark.parametrize("softmax", [True, False])
def test_attention_compiles_to_tensor_cores(launched: list[Any], softmax: bool) -> None:
    from generative.attention.kernels import _triton_attention as kernels

    q, k = empty(2, 4, 4096, 128), empty(2, 2, 4096, 128)
    v, out = (empty(2, h, 4096, 128 if softmax else 1536) for h in (2, 4))
    sums = empty(2, 4, 4096, dtype=torch.float32)
    attend = torch.empty(2, 4, 4096, 4096, dtype=torch.bool, device="meta")
    weights = kernels.Weights(
        softmax=softmax, scale=0.1, causal=True, attend=attend, normaliser=sums, delta=sums
    )
    if softmax:
        kernels.softmax_forward(q, k, v, weights)
    else:
        kernels.weigh(q, k, v, weights, transposed=False)
    kernels.weigh_slopes(k, q, v, out, weights, transposed=True)
    assert all(on_tensor_cores(launched))


def test_linear_attention_compiles_to_tensor_cores(launched: list[Any]) -> None:
    from generative.attention.kernels._triton_linear import causal_sums

    q = empty(2, 16, 16_384, 128)
    causal_sums(q, q, q, mapped="elu_plus_one", normalize=True)
    assert on_tensor_cores(launched) == [True, False, True]  # the second adds up states


def test_mixing_compiles_to_tensor_cores(launched: list[Any]) -> None:
    from generative.attention.kernels import _triton_mixing as kernels

    q, v = empty(8, 8192, 128), empty(8, 8192, 1536)
    weights, _ = kernels.chunk_weights(q, q, 256, 0.1, v, v)
    states = kernels.states(q, v, 256, backwards=False)
    kernels.mix(weights, v, q, states, 256, 0.1, transposed=True)
    kernels.project(v, states, 256, 0.1)
    assert all(on_tensor_cores(launched))
