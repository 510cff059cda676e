"""What tells a run to stop, held back until the step is finished and saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType

__all__ = ["STOP", "HeldSignals"]

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""The signals that end a run after its step: SIGUSR1 is what Slurm is told to warn with."""
_PATIENCE = 1.0  # seconds; launchers deliver one Ctrl-C twice, a person takes longer


class HeldSignals:
    """Inside the block, the first signal of ``STOP`` is remembered in ``received``.

    A second Ctrl-C, a second or more after the first, stops at once. Outside the main thread, where
    Python takes no handlers, and when ``active`` is False, the signals act as they always do.
    """

    def __init__(self, *, active: bool) -> None:
        self.received = 0
        self._since = 0.0
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: dict[int, object] = {}

    def __enter__(self) -> HeldSignals:
        if self._active:
            for number in STOP:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received and number == signal.SIGINT and now - self._since > _PATIENCE:
            raise KeyboardInterrupt
        if not self.received:
            self.received, self._since = number, now
            name = signal.Signals(number).name
            os.write(2, f"{name}: finishing this step, then saving\n".encode())  # print may not
