"""Pythons that start warm: one imports what a run imports, and forks for every call.

More than half of what the pages of the docs take would else be imports, of torch and transformers
above all. A forked process is what a new one would be: it has its own folder, environment, streams
and exit code, and hears signals.

``python warm.py SOCKET`` serves; ``python warm.py SOCKET WORD...`` is ``python WORD...`` for a
shell, where the first word is ``-m`` or a script.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOADED = (
    "accelerate",
    "launch.cli",
    "launch.curves",
    "launch.running",
    "posttrain.recipes.tiny",
    "rl.recipes",
    "transformers.models.qwen2.modeling_qwen2",
)
SHIM = """#!/bin/sh
# A run that has children starts as always: so do they, and pages look at them.
for word in "$@"; do
    case $word in --processes | --supervise) exec {python} -m launch "$@" ;; esac
done
exec {python} -S {script} {socket} -m launch "$@"
"""


@dataclass(frozen=True)
class Warm:
    """A server of warm processes."""

    socket: Path
    bin: Path
    """A folder with a ``monro`` that starts warm, for a shell's PATH."""

    def call(
        self,
        words: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        streams: Sequence[int] = (0, 1, 2),
        timeout: float | None = None,
        begun: Callable[[int], None] = lambda pid: None,
    ) -> int:
        """Run ``python WORD...`` in a process of its own.

        Args:
            words: ``-m``, a module and its arguments, or a script and its arguments.
            cwd: The folder.
            environment: All of it.
            streams: File descriptors of standard input, output and error.
            timeout: Seconds after which it is killed and TimeoutError raised.
            begun: Is given the process's number.

        Returns:
            Its exit code, -N if signal N ended it.
        """
        what = {"words": list(words), "cwd": str(cwd), "environment": dict(environment)}
        message = json.dumps(what).encode()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.socket))
            socket.send_fds(connection, [len(message).to_bytes(4, "big")], list(streams))
            connection.sendall(message)
            with connection.makefile() as answers:
                pid = int(answers.readline())
                begun(pid)
                connection.settimeout(timeout)
                try:
                    return int(answers.readline())
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise


@contextlib.contextmanager
def warm(environment: Mapping[str, str]) -> Iterator[Warm]:
    """Serve within the block; the server has this environment, each call one of its own."""
    with tempfile.TemporaryDirectory() as folder:
        served = Warm(Path(folder, "socket"), Path(folder, "bin"))
        served.bin.mkdir()
        shim = served.bin / "monro"
        shim.write_text(SHIM.format(python=sys.executable, script=__file__, socket=served.socket))
        shim.chmod(0o755)
        server = subprocess.Popen([sys.executable, __file__, served.socket], env=environment)
        try:
            while not served.socket.exists():
                if server.poll() is not None:
                    raise RuntimeError(f"the server ended with exit code {server.returncode}")
                time.sleep(0.01)
            yield served
        finally:
            server.kill()
            server.wait()


def serve(path: str) -> tuple[Mapping[str, Any], Sequence[int]]:
    """Fork for every call; only a child returns, with what it is to do and its streams."""
    for name in LOADED:
        importlib.import_module(name)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path + "-")
    listening.listen()
    os.rename(path + "-", path)
    waiting = selectors.DefaultSelector()
    waiting.register(listening, selectors.EVENT_READ)
    callers: dict[int, socket.socket] = {}
    while True:
        for _ in waiting.select(0.02):
            connection, _ = listening.accept()
            size, streams, _, _ = socket.recv_fds(connection, 4, 3)
            with connection.makefile("rb") as rest:
                what = json.loads(rest.read(int.from_bytes(size, "big")))
            if (pid := os.fork()) == 0:
                for held in (waiting, listening, connection, *callers.values()):
                    held.close()
                return what, streams
            for stream in streams:
                os.close(stream)
            callers[pid] = connection
            connection.sendall(f"{pid}\n".encode())
        while callers and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with callers.pop(ended[0]) as caller, contextlib.suppress(BrokenPipeError):
                caller.sendall(f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())


def become(what: Mapping[str, Any], streams: Sequence[int]) -> None:
    """Take over folder, environment and streams, and do what ``python WORD...`` does."""
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(what["cwd"])
    os.environ.clear()
    os.environ.update(what["environment"])
    first, *rest = what["words"]
    if first == "-m":
        sys.argv, sys.path[0] = rest, ""
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


def main() -> None:
    path, *words = sys.argv[1:]
    if not words:
        become(*serve(path))
        return

    def begun(pid: int) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: os.kill(pid, number))

    served = Warm(Path(path), Path(path).parent / "bin")
    code = served.call(words, cwd=Path.cwd(), environment=os.environ, begun=begun)
    if code < 0:  # end as it did
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
