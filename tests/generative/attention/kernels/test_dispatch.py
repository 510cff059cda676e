from __future__ import annotations

import pytest
import torch

from generative.attention.kernels import dispatch
from generative.attention.kernels.dispatch import on_kernels


class Fake:
    """A tensor's device and dtype, on a device that this machine may lack."""

    def __init__(
        self, device: str = "cuda:0", dtype: torch.dtype = torch.float32, *, size: int = 1
    ) -> None:
        self.device, self.dtype, self.size = torch.device(device), dtype, size

    def numel(self) -> int:
        return self.size


@pytest.fixture(autouse=True)
def asked_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(dispatch, "_has_triton", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    dispatch._serves.cache_clear()
    yield
    dispatch._serves.cache_clear()


def test_a_kernel_takes_tensors_of_one_cuda_device_in_one_dtype() -> None:
    assert on_kernels(Fake(), Fake())
    assert on_kernels(Fake(dtype=torch.bfloat16))
    assert on_kernels(Fake(dtype=torch.float16))


def test_the_twin_takes_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not on_kernels(Fake("cpu"))
    assert not on_kernels(Fake("cuda:0"), Fake("cuda:1"))
    assert not on_kernels(Fake(dtype=torch.float64))
    assert not on_kernels(Fake(), Fake(size=0))
    assert not on_kernels(Fake(), Fake(dtype=torch.bfloat16))
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    assert not on_kernels(Fake())


def test_an_old_device_is_left_to_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not on_kernels(Fake())


def test_the_interpreter_takes_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert on_kernels(Fake("cpu"))
