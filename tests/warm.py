"""Pythons that start warm: one imports what a run imports, and forks for every call.

More than half of what short runs take would else be imports, of torch and transformers above all. A
forked process is what a new one would be: it has its own folder, environment, streams and exit
code, hears signals, and dies with its caller. Only its parent is the server, so tests of launchers
and watchers start cold.

``python warm.py SOCKET`` serves; ``python warm.py SOCKET WORD...`` is ``python WORD...`` for a
shell, where the first word is ``-m`` or a script.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
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
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOADED = (
    "accelerate.commands.launch",
    "deepspeed",
    "launch.cli",
    "launch.curves",
    "launch.running",
    "matplotlib.backends.backend_svg",
    "numba",
    "posttrain.recipes.tiny",
    "posttrain.rollout.compiled_attention",
    "posttrain.rollout.vectors",
    "pygame",
    "reasoning_gym",
    "rl.classic_kernels",
    "rl.fused_kernels",
    "rl.recipes",
    "rl.registered_envs",
    "torch.distributed.fsdp",
    "torch.distributed.run",
    "transformers.models.qwen2.modeling_qwen2",
)
MONRO = """#!/bin/sh
# A run that is watched starts as always: pages look at its processes.
for word in "$@"; do
    case $word in --supervise) exec {python} -m launch "$@" ;; esac
done
exec {python} -S {script} {even} -m launch "$@"
"""
PYTHON = """#!/bin/sh
# Ranks next to each other differ in what a start decides at random, such as the hashes of words.
case $RANK in *[13579]) exec {python} -S {script} {odd} "$@" ;; esac
exec {python} -S {script} {even} "$@"
"""


@dataclass(frozen=True)
class Warm:
    """A server of warm processes."""

    python: str
    """A Python that starts warm, of which ``-m`` and scripts can be asked."""
    bin: Path
    """A folder with a ``monro`` that starts warm, for a shell's PATH."""

    @property
    def environment(self) -> dict[str, str]:
        """This process's, where torchrun starts warm Pythons; tests use one thread each."""
        return os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": self.python}


@contextlib.contextmanager
def warm(environment: Mapping[str, str]) -> Iterator[Warm]:
    """Serve within the block; servers have this environment, each call one of its own."""
    with tempfile.TemporaryDirectory() as folder:
        even, odd, python, programs = (Path(folder, x) for x in ("even", "odd", "python", "bin"))
        programs.mkdir()
        named = {"python": sys.executable, "script": __file__, "even": even, "odd": odd}
        for program, text in ((programs / "monro", MONRO), (python, PYTHON)):
            program.write_text(text.format(**named))
            program.chmod(0o755)
        servers = [
            subprocess.Popen([sys.executable, __file__, path], env=environment)
            for path in (even, odd)
        ]
        try:
            while not (even.exists() and odd.exists()):
                for server in servers:
                    if server.poll() is not None:
                        raise RuntimeError(f"a server ended with exit code {server.returncode}")
                time.sleep(0.01)
            yield Warm(str(python), programs)
        finally:
            for server in servers:
                server.kill()
                server.wait()


def serve(path: str) -> tuple[Mapping[str, Any], Sequence[int]]:
    """Fork for every call; only a child returns, with what it is to do and its streams.

    A caller that is killed is as if its call had been: that gets SIGKILL.
    """
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # the collector would have every fork copy all of this
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path + "-")
    listening.listen()
    os.rename(path + "-", path)
    waiting = selectors.DefaultSelector()
    waiting.register(listening, selectors.EVENT_READ)
    callers: dict[int, socket.socket] = {}
    while True:
        for key, _ in waiting.select(0.02):
            if key.data in callers:
                os.kill(key.data, signal.SIGKILL)
                waiting.unregister(key.fileobj)
            if key.fileobj is not listening:
                continue
            connection, _ = listening.accept()
            size, streams, _, _ = socket.recv_fds(connection, 4, 3)
            with connection.makefile("rb") as rest:
                message = rest.read(int.from_bytes(size, "big"))
            if not message.endswith(b"}"):  # it was killed while it called
                connection.close()
                continue
            what = json.loads(message)
            if (pid := os.fork()) == 0:
                for held in (waiting, listening, connection, *callers.values()):
                    held.close()
                return what, streams
            for stream in streams:
                os.close(stream)
            callers[pid] = connection
            waiting.register(connection, selectors.EVENT_READ, pid)
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(f"{pid}\n".encode())
        while callers and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with callers.pop(ended[0]) as caller, contextlib.suppress(BrokenPipeError):
                if caller in waiting.get_map():
                    waiting.unregister(caller)
                caller.sendall(f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())


def become(what: Mapping[str, Any], streams: Sequence[int]) -> None:
    """Take over folder, environment and streams, and do what ``python WORD...`` does."""
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(what["cwd"])
    os.environ.clear()
    os.environ.update(what["environment"])
    sys.modules["numpy"].random.seed()  # as at any start; Python's own does so by itself
    os.environ.pop("MONRO_PARENT", None)  # it would not know this one, and the server stands in
    first, *rest = (word for word in what["words"] if word != "-u")
    if first == "-m":
        sys.argv, sys.path[0] = rest, ""
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


def end_after(what: Mapping[str, Any], streams: Sequence[int]) -> None:
    """Do that, and end as Python does but for taking imports down, which would copy them: 2 s."""
    code: object = 0
    try:
        become(what, streams)
    except SystemExit as leaving:
        code = 0 if leaving.code is None else leaving.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader is gone, or the stream is
            stream.flush()
    os._exit(code & 255 if isinstance(code, int) else 1)


def call(path: str, words: Sequence[str]) -> int:
    """Have ``python WORD...`` run here, and hand signals on to it; return its exit code."""
    what = {"words": words, "cwd": os.getcwd(), "environment": dict(os.environ)}
    message = json.dumps(what).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [len(message).to_bytes(4, "big")], (0, 1, 2))
        connection.sendall(message)
        with connection.makefile() as answers:
            pid = int(answers.readline())
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                signal.signal(number, lambda number, frame: os.kill(pid, number))
            return int(answers.readline())


def main() -> None:
    path, *words = sys.argv[1:]
    if not words:
        end_after(*serve(path))
    code = call(path, words)
    if code < 0:  # end as it did
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
