"""What torchrun is made to do otherwise than by itself."""

from __future__ import annotations

import signal

import pytest
from torch.distributed.elastic.multiprocessing.api import SubprocessContext

from launch import torchrun


def test_a_signal_waits_until_torchrun_knows_all_its_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    def start(self: SubprocessContext) -> None:
        signal.raise_signal(signal.SIGTERM)
        order.append("started")

    monkeypatch.setattr(SubprocessContext, "_start", start)
    before = signal.signal(signal.SIGTERM, lambda number, frame: order.append("told"))
    try:
        with torchrun._whole_starts():
            SubprocessContext._start(object.__new__(SubprocessContext))
        assert order == ["started", "told"]
        signal.raise_signal(signal.SIGTERM)
        assert order == ["started", "told", "told"]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert SubprocessContext._start is start
