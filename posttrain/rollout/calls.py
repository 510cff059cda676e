"""JSON over HTTP, each call with a limit, and many of them that fail as one."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, TypeVar
from urllib.parse import urlsplit

from launch.errors import UsageError

__all__ = ["Calls", "NoAnswer", "Refused"]

T = TypeVar("T")

_BUSY = (502, 503, 504)
"""What a server or its proxy says while it starts or is full: the call may be made again."""
_FIRST_PAUSE = 0.5  # seconds; doubled with every try


class NoAnswer(UsageError):
    """A server is not there, was lost, or took too long."""


class Refused(UsageError):
    """A server answered with an error; ``status`` is HTTP's."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@dataclass(slots=True, eq=False)
class Calls:
    """Makes calls; all of those that are under way can be given up from another thread.

    A call is made again after a lost connection and after the statuses 502 to 504, so it has to be
    one that may be repeated. It is never made again after its limit.

    Args:
        connect_seconds: Limit of connecting, for each try.
        retries: Further tries, after .5, 1, 2 ... seconds.
        at_once: Most calls of ``together`` that are under way.
    """

    connect_seconds: float
    retries: int
    at_once: int
    _open: set[Callable[[], None]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _given_up: threading.Event = field(default_factory=threading.Event)

    def call(
        self, server: str, path: str, body: Mapping[str, object] | None = None, *, seconds: float
    ) -> Any:  # noqa: ANN401 whatever JSON the server sent
        """Return the answer of ``POST server/path``, or of ``GET`` without a body.

        Args:
            server: Such as ``http://node-7:8000``.
            path: Begins with a slash.
            body: Is sent as JSON.
            seconds: Limit of the whole call, all tries and pauses together.

        Returns:
            What the JSON of the answer says; None where it is empty.

        Raises:
            NoAnswer: The server is not there or was lost, or the limit has passed.
            Refused: It answered with an error.
        """
        what = f"{'GET' if body is None else 'POST'} {path.partition('?')[0]}"
        start, problem = time.monotonic(), ""
        for number in range(self.retries + 1):
            pause = _FIRST_PAUSE * 2 ** (number - 1) if number else 0.0
            left = seconds - (time.monotonic() - start)
            if self._given_up.wait(min(pause, max(left, 0.0))):
                break
            left = seconds - (time.monotonic() - start)
            if left <= 0:
                raise _late(server, what, seconds, problem)
            try:
                status, text = self._once(server, path, body, left)
            except TimeoutError:
                raise _late(server, what, seconds, problem) from None
            except (OSError, HTTPException) as error:
                problem = _said(error)
                continue
            if status == 200:
                return _decoded(server, what, text)
            problem = f"HTTP {status}: {_message(text)}"
            if status not in _BUSY:
                raise Refused(f"{server} answered {what} with {problem}", status)
        raise NoAnswer(
            f"{server} did not answer {what} ({problem}) in {number + 1} tries within "
            f"{time.monotonic() - start:.1f} s: see whether it runs and what it wrote last; start "
            "it again and go on with --resume"
        )

    def together(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Return the results of tasks that make calls; the first error gives up all the others."""
        pool = ThreadPoolExecutor(max_workers=max(1, min(self.at_once, len(tasks))))
        futures: list[Future[T]] = [pool.submit(task) for task in tasks]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [future for future in futures if future in done and future.exception()]
            if failed:
                raise failed[0].exception() or AssertionError
            return [future.result() for future in futures]
        finally:
            self._give_up()
            pool.shutdown(cancel_futures=True)
            self._given_up.clear()

    def _give_up(self) -> None:
        """End the calls that are under way: those who wait for them get an error."""
        self._given_up.set()
        with self._lock:
            cuts = list(self._open)
        for cut in cuts:
            cut()

    def _once(
        self, server: str, path: str, body: Mapping[str, object] | None, seconds: float
    ) -> tuple[int, bytes]:
        """Return status and text of one try, within ``seconds`` however slowly bytes arrive."""
        place = urlsplit(server)
        kind = HTTPSConnection if place.scheme == "https" else HTTPConnection
        connection = kind(
            place.hostname or "", place.port, timeout=min(self.connect_seconds, seconds)
        )
        start = time.monotonic()
        try:
            try:
                connection.connect()
            except TimeoutError:
                raise OSError(f"no connection within {self.connect_seconds:g} s") from None
            with self._cut_after(connection.sock, seconds - (time.monotonic() - start)) as ended:
                try:
                    data = None if body is None else json.dumps(body).encode()
                    connection.request(
                        "GET" if data is None else "POST",
                        place.path.rstrip("/") + path,
                        data,
                        {"Content-Type": "application/json"},
                    )
                    answer = connection.getresponse()
                    found = answer.status, answer.read()
                except (OSError, HTTPException, ValueError) as error:
                    if not ended:
                        raise OSError(_said(error)) from None
                if "late" in ended:
                    raise TimeoutError
                if ended:  # an answer that was cut off may look whole
                    raise OSError("given up")
                return found
        finally:
            connection.close()

    @contextlib.contextmanager
    def _cut_after(self, line: socket.socket, seconds: float) -> Iterator[set[str]]:
        """Shut a connection down after a time, or when all are given up; the set says why."""
        ended: set[str] = set()

        def cut(why: str = "given up") -> None:
            ended.add(why)
            with contextlib.suppress(OSError):  # it is down already
                line.shutdown(socket.SHUT_RDWR)

        line.settimeout(None)
        timer = threading.Timer(max(0.0, seconds), cut, ("late",))
        timer.daemon = True
        with self._lock:
            self._open.add(cut)
        timer.start()
        try:
            yield ended
        finally:
            timer.cancel()
            with self._lock:
                self._open.discard(cut)


def _late(server: str, what: str, seconds: float, problem: str) -> NoAnswer:
    after = f" ({problem} before)" if problem else ""
    return NoAnswer(
        f"{server} did not answer {what} within {seconds:g} s{after}: if it is only slow, raise "
        "the limit (rollouts.seconds, rollouts.push_seconds); otherwise start it again; then go "
        "on with --resume"
    )


def _said(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()) or type(error).__name__


def _decoded(server: str, what: str, text: bytes) -> Any:  # noqa: ANN401 whatever JSON it is
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except ValueError:
        raise UsageError(
            f"{server} answered {what} with what is no JSON: {_message(text)}; is it a vLLM server?"
        ) from None


def _message(text: bytes) -> str:
    """Return what an error's body says, on one line and not too long."""
    shown = text.decode(errors="replace")
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        found = json.loads(shown)
        inner = found.get("error", found.get("detail", shown))
        shown = str(inner.get("message", inner) if isinstance(inner, dict) else inner)
    shown = " ".join(shown.split())
    return shown if len(shown) <= 300 else shown[:300] + "..."
