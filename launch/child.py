"""One child process that hears what its parent is told."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from types import FrameType

from launch.signals import STOP

__all__ = ["SET_DEATH_SIGNAL", "run_child"]

SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in <sys/prctl.h>


def run_child(
    argv: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    own_session: bool = False,
) -> tuple[int, int]:
    """Run a program, hand on to it the signals that tell a run to stop, and wait for its end.

    Args:
        argv: The program and its arguments.
        environment: All of its environment; by default this process's.
        own_session: Whether a Ctrl-C in the terminal reaches it once, from here, and not from the
            terminal as well. If this process is killed, it then gets SIGTERM (on Linux).

    Returns:
        Its exit code, -N if signal N ended it; and the first signal that it was handed, or 0.
    """
    heard: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        if child is not None:
            child.send_signal(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, hand_on) for number in STOP}
    try:
        prepare = _end_with_parent if own_session and sys.platform == "linux" else None
        child = subprocess.Popen(
            argv, env=environment, start_new_session=own_session, preexec_fn=prepare
        )
        if heard:  # while it was being started
            child.send_signal(heard[0])
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code, heard[0] if heard else 0


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGTERM)
