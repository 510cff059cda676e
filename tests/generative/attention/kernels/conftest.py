"""Where the kernels run: in Triton's interpreter if that was asked for, or on a CUDA device.

Every test that asks for ``device`` is a law between a kernel and its twin. ``test_interpreted.py``
runs these files once more, in a process of their own, because Triton decides while it is imported
whether it interprets.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def device() -> torch.device:
    if INTERPRETED:
        _multiply_bfloat16()
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; test_interpreted.py runs it in Triton's interpreter")
    return torch.device("cuda")


def _multiply_bfloat16() -> None:
    """Widen bfloat16 factors to float32: the interpreter multiplies their bits as integers."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    plain = InterpreterBuilder.create_dot
    if plain.__name__ != "create_dot":
        return

    def wide(x: TensorHandle) -> TensorHandle:
        if x.dtype.scalar != tl.bfloat16:
            return x
        bits = x.data.astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), tl.float32)

    def widened(self: object, a: object, b: object, *rest: object) -> object:
        return plain(self, wide(a), wide(b), *rest)

    InterpreterBuilder.create_dot = widened


class Largest(TorchDispatchMode):
    """Counts the bytes of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.nbytes = max(self.nbytes, x.numel() * x.element_size())
        return out


@pytest.fixture
def largest() -> Largest:
    return Largest()
