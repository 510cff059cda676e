from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from posttrain.rollout.calls import Calls, NoAnswer, Refused

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
Talk = Callable[[socket.socket], None]


@contextmanager
def server(*talks: Talk) -> Iterator[tuple[str, list[bytes]]]:
    """A server whose n-th connection is handled by the n-th function, later ones by the last."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:

        def serve() -> None:
            for number in range(1000):
                try:
                    line, _ = listening.accept()
                except OSError:
                    return
                talk = talks[min(number, len(talks) - 1)]
                threading.Thread(target=handle, args=(line, talk), daemon=True).start()

        def handle(line: socket.socket, talk: Talk) -> None:
            with line:
                heard.append(request(line))
                talk(line)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", heard
        listening.shutdown(socket.SHUT_RDWR)


def request(line: socket.socket) -> bytes:
    text = line.recv(65536)
    head, _, body = text.partition(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    while length and len(body) < int(length[1]):
        more = line.recv(65536)
        text, body = text + more, body + more
    return text


def says(text: bytes) -> Talk:
    return lambda line: line.sendall(text)


def resets(line: socket.socket) -> None:
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def hangs(line: socket.socket) -> None:
    line.recv(1)  # until the other side has gone


def trickles(line: socket.socket) -> None:
    """A byte every .05 s: no single read takes long."""
    line.sendall(b"HTTP/1.1 200 OK\r\n")
    try:
        while True:
            line.sendall(b"x")
            time.sleep(0.05)
    except OSError:
        pass


def calls(retries: int = 3) -> Calls:
    return Calls(5.0, retries, 8)


def test_a_call_sends_json_and_returns_json() -> None:
    with server(says(b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}')) as (url, heard):
        assert calls().call(url, "/x?y=1", {"b": [2]}, seconds=5) == {"a": 1}
    assert heard[0].startswith(b"POST /x?y=1 HTTP/1.1\r\n")
    head, _, body = heard[0].partition(b"\r\n\r\n")
    assert b"Content-Length: 10" in head
    assert json.loads(body) == {"b": [2]}


@pytest.mark.parametrize(
    "fault",
    [
        resets,
        lambda line: None,  # closes without a word
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"),  # dies in the middle
        says(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"),
    ],
)
def test_a_lost_connection_and_a_busy_server_are_tried_again(fault: Talk) -> None:
    with server(fault, says(OK)) as (url, heard):
        assert calls().call(url, "/x", {}, seconds=5) == {}
    assert len(heard) == 2
    assert heard[0] == heard[1]


def test_an_error_of_the_server_is_told_once_and_not_tried_again() -> None:
    text = b'{"error": {"message": "no\\nroom"}}'
    head = f"HTTP/1.1 500 E\r\nContent-Length: {len(text)}\r\n\r\n".encode()
    with server(says(head + text)) as (url, heard):
        with pytest.raises(Refused, match=r"answered POST /x with HTTP 500: no room$") as error:
            calls().call(url, "/x?y=1", {}, seconds=5)
        assert error.value.status == 500
        assert len(heard) == 1


@pytest.mark.parametrize("talk", [hangs, trickles])
def test_a_call_ends_at_its_limit_whatever_the_server_does(talk: Talk) -> None:
    with server(talk) as (url, heard):
        start = time.monotonic()
        with pytest.raises(NoAnswer, match=r"did not answer GET /x within 0.4 s: if it is only"):
            calls().call(url, "/x", seconds=0.4)
        assert 0.4 <= time.monotonic() - start < 2.0
        assert len(heard) == 1  # a time-out is not tried again


def test_all_tries_together_end_at_the_limit() -> None:
    with server(resets) as (url, _):
        start = time.monotonic()
        with pytest.raises(NoAnswer, match=r"within 0.8 s \(Connection reset"):
            calls(9).call(url, "/x", seconds=0.8)  # tries at 0 and .5; another would be at 1.5
        assert time.monotonic() - start < 1.5


def test_no_server_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(NoAnswer, match=r"Connection refused\) in 2 tries within 0\.\d s") as error:
        calls(1).call(f"http://127.0.0.1:{port}", "/x", seconds=5)
    assert "\n" not in str(error.value)


def test_a_server_that_takes_no_connection_is_given_up_at_the_limit_of_connecting() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        place = listening.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for line in waiting:  # they fill the queue of a server that accepts none
            line.setblocking(False)
            line.connect_ex(place)
        start = time.monotonic()
        with pytest.raises(NoAnswer, match=r"no connection within 0.3 s"):
            Calls(0.3, 0, 1).call(f"http://127.0.0.1:{place[1]}", "/x", seconds=60)
        assert time.monotonic() - start < 5.0
        for line in waiting:
            line.close()


def test_what_is_no_json_is_refused() -> None:
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"
    with (
        server(says(page)) as (url, _),
        pytest.raises(ValueError, match=r"with what is no JSON: <html>; is it a vLLM server\?"),
    ):
        calls().call(url, "/x", seconds=5)


def test_calls_together_come_back_in_order() -> None:
    def late(line: socket.socket) -> None:
        time.sleep(0.2)
        line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n0")

    with server(late) as (slow, _), server(says(OK)) as (fast, _):
        all_calls = calls()
        tasks = [partial(all_calls.call, url, "/x", {}, seconds=5) for url in (slow, fast, slow)]
        assert all_calls.together(tasks) == [0, {}, 0]
        assert all_calls.together([]) == []


def test_the_first_error_of_many_calls_gives_the_others_up_at_once() -> None:
    with server(hangs) as (slow, _), server(says(b"HTTP/1.1 500 E\r\n\r\n")) as (broken, _):
        all_calls = Calls(5.0, 3, 64)
        urls = [slow] * 6 + [broken]
        start = time.monotonic()
        with pytest.raises(Refused, match="HTTP 500"):
            all_calls.together([partial(all_calls.call, u, "/x", {}, seconds=60) for u in urls])
        assert time.monotonic() - start < 10.0
        with server(resets, says(OK)) as (url, _):  # what comes later is tried again as ever
            assert all_calls.call(url, "/x", {}, seconds=5) == {}
