from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from generative.attention.kernels import dispatch
from generative.attention.kernels.dispatch import on_its_device, on_kernels


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


def test_a_launch_is_on_the_device_of_its_first_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[object] = []

    @contextmanager
    def device_of(x: object) -> Iterator[None]:
        steps.append(x)
        yield
        steps.append("left")

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    first, second = Fake("cuda:1"), Fake("cuda:1")
    launch = on_its_device(lambda x, y, *, z: steps.append((x, y, z)))
    launch(first, second, z=3)
    assert steps == [first, (first, second, 3), "left"]
