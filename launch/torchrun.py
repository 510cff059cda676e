"""torchrun as it is wanted here: quiet, with signals and faults that leave nobody behind."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.faults import LOGS
from launch.signals import STOP

__all__ = ["HANDED_ON", "handlers_kept", "run_workers"]

HANDED_ON = (*STOP, signal.SIGHUP, signal.SIGQUIT)
"""The signals that torchrun hands on to the workers."""
_CONFIG = Path(__file__).parent / "configs" / "processes.yaml"
_GRACE = 30  # seconds that a worker has to finish its step and to save
_FAULT_GRACE = 5  # seconds that it has when another has failed: there is nothing left to save


def run_workers(arguments: Sequence[str], count: int, folder: Path) -> int | dict[int, int]:
    """Run ``monro`` in ``count`` workers under torchrun.

    Args:
        arguments: Of ``monro``.
        count: Of workers.
        folder: For their logs.

    Returns:
        The exit code, or that of each rank that failed.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = [
        *("--config_file", str(_CONFIG), "--multi_gpu", "--num_processes", str(count)),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", "0"),  # a free one
    ]
    if not sys.stderr.isatty():  # a terminal has a live bar, and shows the last lines anyhow
        options += ["--tee", "2", "--role", ""]
    launcher = launch_command_parser().parse_args([*options, "-m", "launch", *arguments])
    launcher.log_dir = str(folder / LOGS)
    launcher.shutdown_timeout = _GRACE
    launcher.signals_to_handle = ",".join(number.name for number in HANDED_ON)
    try:
        with _quiet_launcher(), _whole_starts(), _short_fault_grace() as failed:
            launch_command(launcher)
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        # Who was killed at the end of the grace had only waited for the one that failed.
        return {
            rank: failure.exitcode
            for rank, failure in error.failures.items()
            if rank in failed or failure.exitcode != -signal.SIGKILL
        }
    return 0


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Give back the handlers of signals that are replaced in the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in HANDED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not installed by Python
                signal.signal(number, handler)


@contextlib.contextmanager
def _whole_starts() -> Iterator[None]:
    """Have signals wait while torchrun starts workers.

    It notes them when all are started: a signal before that would leave those that are to
    themselves.
    """
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

    start = SubprocessContext._start

    def whole(self: Any) -> None:  # noqa: ANN401
        heard: list[int] = []
        with handlers_kept():
            if threading.current_thread() is threading.main_thread():
                for number in HANDED_ON:
                    signal.signal(number, lambda number, frame: heard.append(number))
            start(self)  # type: ignore[no-untyped-call]
        if heard:
            signal.raise_signal(heard[0])

    SubprocessContext._start = whole  # type: ignore[method-assign]
    try:
        yield
    finally:
        SubprocessContext._start = start  # type: ignore[method-assign]


@contextlib.contextmanager
def _short_fault_grace() -> Iterator[set[int]]:
    """Have torchrun end the peers of a rank that failed soon, and note who failed before that.

    By itself it gives them 30 s, as to those that were told to stop; and one that waits in a
    rendezvous for the dead does not hear its signal.
    """
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

    failed: set[int] = set()
    close = SubprocessContext.close

    def soon(self: Any, death_sig: Any = None, timeout: int = _GRACE) -> None:  # noqa: ANN401
        if death_sig is None:  # nobody has asked for it
            failed.update(self._failures)
            timeout = _FAULT_GRACE
        close(self, death_sig, timeout)

    SubprocessContext.close = soon  # type: ignore[method-assign]
    try:
        yield failed
    finally:
        SubprocessContext.close = close  # type: ignore[method-assign]


@contextlib.contextmanager
def _quiet_launcher() -> Iterator[None]:
    """Keep torchrun's log lines to itself: the parent says in one line what went wrong."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
