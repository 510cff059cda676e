"""Memory: what the allocator does with freed blocks, and what is kept for the backward pass."""

from __future__ import annotations

import ctypes
import functools
import platform

from torch import nn

from launch.errors import UsageError

__all__ = ["checkpoint_activations", "keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them, <malloc.h>
_KEPT = 1 << 30
_LARGEST = 1 << 25
"""glibc's own limit for blocks that come from its heap."""


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep up to 1 GiB of freed memory; return whether it does.

    A training step frees and takes the same blocks again and again. By default glibc hands large
    ones back to the system, which then clears every page anew: some 2,000 page faults a step of a
    small model, a tenth of its time. Elsewhere than on glibc nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _KEPT))


def checkpoint_activations(model: nn.Module) -> None:
    """Have a transformers model compute its layers again in the backward pass.

    Chen et al. 2016, arXiv:1604.06174: a layer keeps its input alone, at the price of one more
    forward pass; the gradients are the same bits. Layers do so in training mode, so that is what
    they are put into; their parts, such as dropout, stay in the mode they are in.

    Raises:
        UsageError: The model has no layers that do so.
    """
    enable = getattr(model, "activation_checkpointing_enable", None)
    enable = enable or getattr(model, "gradient_checkpointing_enable", None)
    try:
        if enable is None:
            raise ValueError("it is no model of transformers")
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UsageError(
            f"runtime.activation_checkpointing: {type(model).__name__} knows no layers to compute "
            f"again ({' '.join(str(error).split())[:200]}); leave it false"
        ) from error
    # Embeddings that ask for a gradient are for the reentrant kind; frozen ones need none here.
    if callable(forget := getattr(model, "disable_input_require_grads", None)):
        forget()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
