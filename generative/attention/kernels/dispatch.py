"""Whether a kernel can take these tensors; whoever asks computes the twin otherwise."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import cache, wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["on_its_device", "on_kernels"]

Rest = ParamSpec("Rest")
Result = TypeVar("Result")

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LEAST_CAPABILITY = (8, 0)  # the first with tensor cores for bfloat16


def on_kernels(*tensors: Tensor) -> bool:
    """Return whether all lie on one CUDA device that Triton serves, in one dtype it multiplies.

    float64, mixed dtypes and tensors without elements are the twins' alone. Nothing is imported and
    nothing is said. With ``TRITON_INTERPRET=1`` in the environment Triton interprets kernels, on
    any device and slowly; then tensors of any device are taken.

    >>> on_kernels(torch.zeros(2), torch.zeros(2))
    False
    """
    first = tensors[0]
    alike = all(
        t.device == first.device and t.dtype == first.dtype and t.numel() > 0 for t in tensors
    )
    return alike and first.dtype in _DTYPES and _has_triton() and _serves(first.device)


def on_its_device(
    launch: Callable[Concatenate[Tensor, Rest], Result],
) -> Callable[Concatenate[Tensor, Rest], Result]:
    """Make the device of the first argument the current one: Triton launches on that one."""

    @wraps(launch)
    def launched(first: Tensor, /, *rest: Rest.args, **named: Rest.kwargs) -> Result:
        with torch.cuda.device_of(first):
            return launch(first, *rest, **named)

    return launched


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _serves(device: torch.device) -> bool:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY
