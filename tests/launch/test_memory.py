from __future__ import annotations

import platform
import resource

import pytest
import torch

from launch.memory import keep_freed_memory


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")
def test_steps_that_free_and_take_the_same_blocks_cause_few_page_faults() -> None:
    assert keep_freed_memory()
    x, weight = torch.randn(1024, 256), torch.randn(256, 256, requires_grad=True)  # 1 MiB blocks

    def step() -> None:
        (x @ weight).tanh().square().mean().backward()
        weight.grad = None

    for _ in range(5):
        step()
    before = page_faults()
    for _ in range(50):
        step()
    of_a_block = x.numel() * x.element_size() // resource.getpagesize()
    assert page_faults() - before < 50 * of_a_block  # each step writes several blocks
