import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.rewards.judge import Judge, Verdict

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

ENDLESS = ("$9^{9^{9^{9}}}$", "$1$")
EASY = ("$x+1$", "$1+x$")


@pytest.fixture
def fresh() -> Iterator[Judge]:
    judge = Judge("math")
    yield judge
    judge.close()


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    judge = Judge("math")
    assert judge([EASY], seconds=5) == [Verdict.EQUAL]
    yield judge
    judge.close()


def supervisor(judge: Judge) -> int:
    assert judge._worker is not None
    return judge._worker.pid


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, f"{pids} are still there"
        time.sleep(0.05)


def test_limit_begins_when_the_child_is_ready(fresh: Judge) -> None:
    assert fresh([EASY], seconds=0.2) == [Verdict.EQUAL]  # importing sympy takes longer


def test_judge_starts_no_process_before_the_first_request(fresh: Judge) -> None:
    assert fresh([], seconds=1) == []
    assert fresh._worker is None


def test_a_child_that_is_over_time_is_killed_and_replaced(judge: Judge) -> None:
    assert judge([EASY], seconds=5) == [Verdict.EQUAL]
    before = children(supervisor(judge))
    assert judge([ENDLESS], seconds=0.2) == [Verdict.TIMEOUT]
    assert judge([EASY], seconds=5) == [Verdict.EQUAL]
    assert not set(before) & set(children(supervisor(judge)))


def test_a_request_that_kills_its_child_is_a_crash_and_the_next_is_judged(judge: Judge) -> None:
    def kill_the_busy_child() -> None:
        for child in children(supervisor(judge)):
            os.kill(child, signal.SIGKILL)

    assert judge([EASY], seconds=5) == [Verdict.EQUAL]
    killer = threading.Timer(0.3, kill_the_busy_child)
    killer.start()
    assert judge([ENDLESS], seconds=20) == [Verdict.CRASH]
    killer.join()
    assert judge([EASY], seconds=5) == [Verdict.EQUAL]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_for_the_run_leave_its_judge_working(judge: Judge, number: signal.Signals) -> None:
    assert judge([EASY], seconds=5) == [Verdict.EQUAL]
    asked = supervisor(judge)
    for process in (asked, *children(asked)):  # Slurm signals every process of a step
        os.kill(process, number)
    assert judge([EASY], seconds=5) == [Verdict.EQUAL]
    assert supervisor(judge) == asked


def test_a_killed_supervisor_is_replaced(judge: Judge) -> None:
    os.kill(supervisor(judge), signal.SIGKILL)
    assert judge([EASY, EASY], seconds=5) == [Verdict.EQUAL, Verdict.EQUAL]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # Python 3.12
def test_a_forked_process_has_a_judge_of_its_own(judge: Judge) -> None:
    pid = os.fork()
    if not pid:
        verdicts = judge([EASY], seconds=5)
        os._exit(0 if verdicts == [Verdict.EQUAL] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert judge([EASY], seconds=5) == [Verdict.EQUAL]


def test_processes_end_when_their_user_is_killed() -> None:
    # Without a guard in __main__, and from a thread, as in a notebook.
    program = f"""
import threading, time
from posttrain.rewards.judge import judge_for
judge = judge_for("math")
judge([{EASY!r}], seconds=5)
print(judge._worker.pid, flush=True)
threading.Thread(target=judge, args=([{ENDLESS!r}],), kwargs={{"seconds": 60}}).start()
time.sleep(0.2)
print("busy", flush=True)
"""
    user = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert user.stdout is not None
    pid = int(user.stdout.readline())
    assert user.stdout.readline() == "busy\n"
    pids = [pid, *children(pid)]
    assert len(pids) == 2
    user.kill()
    user.communicate()
    wait_until_gone(pids)


def test_judge_that_cannot_start_says_why(fresh: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "site-packages" not in p])
    with pytest.raises(RuntimeError, match="math-verify did not start: ModuleNotFoundError"):
        fresh([EASY], seconds=5)


def test_memory_of_a_child_is_bounded(judge: Judge) -> None:
    assert judge([EASY], seconds=5) == [Verdict.EQUAL]
    for child in children(supervisor(judge)):
        limits = Path(f"/proc/{child}/limits").read_text().splitlines()
        (limit,) = [line.split()[3] for line in limits if line.startswith("Max address space")]
        assert 2**31 < int(limit) < 2**33
