from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.errors import UsageError
from posttrain.rewards import sandbox_kernel
from posttrain.rewards.sandbox import Execution, Limits, Outcome, Program, Sandbox
from posttrain.rewards.worker_process import WorkerGone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

LIMITS = Limits(seconds=30.0, cpu_seconds=20, memory=256 * 2**20, disk=2**20, output=2**16)
SECONDS = 0.5


@pytest.fixture(scope="module", params=["namespaces", "open"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """One as the kernel allows it, and one as if it refused namespaces."""
    made = Sandbox(LIMITS, as_root_without_namespaces=True)
    if request.param == "open":
        made._namespaces = False
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            made.run([])
            made.run([Program(source="")])
        if not made._namespaces:
            pytest.skip("the kernel refuses namespaces")
    yield made
    made.close()


def run(sandbox: Sandbox, source: str, *, stdin: str = "", **limits: float) -> Execution:
    before, sandbox.limits = sandbox.limits, Limits(**{**as_dict(LIMITS), **limits})  # type: ignore[arg-type]  # integers stay integers
    try:
        return sandbox.run([Program(source=source, stdin=stdin)])[0]
    finally:
        sandbox.limits = before


def as_dict(limits: Limits) -> dict[str, float]:
    return {name: getattr(limits, name) for name in Limits.__slots__}


def processes() -> set[int]:
    """Return what runs below this process."""
    return sandbox_kernel._descendants(os.getpid())


def is_well(sandbox: Sandbox) -> bool:
    """Whether the next program runs as if nothing had been, and nothing is left of the last."""
    found = sandbox.run([Program(source="print(input())", stdin="well")])[0]
    assert sandbox._worker is not None
    below = sandbox_kernel._descendants(sandbox._worker.pid)
    return (found.outcome, found.output) == (Outcome.ENDED, "well\n") and len(below) <= 1


def test_program_gets_its_input_and_its_output_is_read(sandbox: Sandbox) -> None:
    text = "äb\n" * 100_000
    found = run(sandbox, "import sys; print(len(sys.stdin.read())); print('é')", stdin=text)
    assert (found.outcome, found.output) == (Outcome.ENDED, "300000\né\n")
    assert 0 < found.seconds < 1


def test_programs_come_back_in_their_order(sandbox: Sandbox) -> None:
    found = sandbox.run([Program(source=f"print({i})") for i in range(12)])
    assert [execution.output for execution in found] == [f"{i}\n" for i in range(12)]


def test_endless_loop_costs_its_own_limit_only(sandbox: Sandbox) -> None:
    start = time.monotonic()
    found = run(sandbox, "while True: pass", seconds=SECONDS)
    assert found.outcome is Outcome.TIMEOUT
    assert SECONDS <= found.seconds < SECONDS + 10  # of 30
    assert time.monotonic() - start < SECONDS + 15
    assert is_well(sandbox)


def test_sleeping_program_is_over_time_too(sandbox: Sandbox) -> None:
    assert run(sandbox, "import time; time.sleep(60)", seconds=0.2).outcome is Outcome.TIMEOUT


def test_processor_time_has_a_limit_of_its_own(sandbox: Sandbox) -> None:
    found = run(sandbox, "while True: pass", seconds=20.0, cpu_seconds=1)
    assert found.outcome is Outcome.TIMEOUT
    assert found.seconds < 15


BOMBS = {
    "gives up": "import os\nwhile True: os.fork()",
    "goes on": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    "daemons": (
        "import os\nwhile True:\n  try:\n    if os.fork() == 0:\n      os.setsid()\n"
        "      if os.fork(): os._exit(0)\n  except OSError: pass"
    ),
    "threads": (
        "import threading, time\nwhile True:\n"
        "  try: threading.Thread(target=time.sleep, args=(99,)).start()\n"
        "  except RuntimeError: pass"
    ),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_fork_bomb_is_bounded_and_nothing_of_it_is_left(sandbox: Sandbox, kind: str) -> None:
    before = processes()
    assert run(sandbox, BOMBS[kind], seconds=SECONDS).outcome is not Outcome.ENDED
    assert is_well(sandbox)
    assert len(processes() - before) <= 2


def test_orphan_in_a_session_of_its_own_ends_with_its_program(sandbox: Sandbox) -> None:
    source = (
        "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n"
        "    print(1, flush=True); time.sleep(60)\n  os._exit(0)\nos.wait(); time.sleep(.1)"
    )
    found = run(sandbox, source)
    assert found.outcome is Outcome.ENDED
    assert is_well(sandbox)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="a number is needed")
def test_orphan_whose_first_thread_has_ended_is_killed_too(sandbox: Sandbox) -> None:
    source = (
        "import ctypes, os, threading, time\nif os.fork() == 0:\n  os.setsid()\n"
        "  threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "  exits = {'x86_64': 60, 'aarch64': 93}[os.uname().machine]\n"
        "  ctypes.CDLL(None).syscall(exits, 0)  # of this thread alone\n"
        "time.sleep(.2)"
    )
    start = time.monotonic()
    assert run(sandbox, source).outcome is Outcome.ENDED
    assert is_well(sandbox)
    assert time.monotonic() - start < 30  # of 60


def test_ten_gibibytes_are_refused(sandbox: Sandbox) -> None:
    found = run(sandbox, "print('before', flush=True); x = bytearray(10 * 2**30); print('after')")
    assert (found.outcome, found.output) == (Outcome.FAILED, "before\n")
    grows = "x = []\nwhile True: x.append(bytearray(2**20))"
    assert run(sandbox, grows, seconds=10.0).outcome is Outcome.FAILED
    assert is_well(sandbox)


def test_program_that_writes_everywhere_fills_its_own_folder_at_most(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    source = (
        "import os\nwrote = []\n"
        f"for folder in {[str(tmp_path), '/', '/usr', '/etc', '/root', '/var/tmp', '/dev']}:\n"
        "  try: open(folder + '/monro-was-here', 'w').close(); wrote.append(folder)\n"
        "  except OSError: pass\n"
        "total = 0\ntry:\n  with open('big', 'wb') as f:\n"
        "    while True: total += f.write(bytes(65536))\n"
        "except OSError: pass\nprint(os.path.getsize('big') <= 2**20, wrote)"
    )
    found = run(sandbox, source)
    assert found.output.startswith("True"), found
    if sandbox._namespaces:
        assert found.output == "True []\n"
    for folder in ("/", "/usr", "/etc", "/root", "/dev"):
        assert not Path(folder, "monro-was-here").exists()
    Path("/var/tmp/monro-was-here").unlink(missing_ok=True)
    assert run(sandbox, "import os; print(os.listdir('.'))").output == "[]\n"


def test_many_files_do_not_fill_the_disk(sandbox: Sandbox) -> None:
    if not sandbox._namespaces:
        pytest.skip("the whole folder has a limit with namespaces alone")
    source = (
        "n = 0\ntry:\n  while True:\n    open(str(n), 'wb').write(bytes(100_000)); n += 1\n"
        "except OSError: print(n)"
    )
    assert int(run(sandbox, source).output) <= 10


def test_program_that_closes_its_output_is_judged_by_what_it_printed(sandbox: Sandbox) -> None:
    early = "print('a', flush=True)\nimport os\nos.close(1)\n"
    found = run(sandbox, early + "raise SystemExit(0)")
    assert found.output == "a\n"
    assert found.outcome in (Outcome.ENDED, Outcome.FAILED)
    assert run(sandbox, early + "while True: pass", seconds=0.3).outcome is Outcome.TIMEOUT
    closes_all = "import os\nos.closerange(0, 100)\nwhile True: pass"
    assert run(sandbox, closes_all, seconds=0.3).outcome is Outcome.TIMEOUT
    assert is_well(sandbox)


def test_program_that_prints_for_ever_is_cut(sandbox: Sandbox) -> None:
    found = run(sandbox, "while True: print('y' * 1000)", seconds=10.0)
    assert found.outcome is Outcome.OUTPUT
    assert len(found.output) == LIMITS.output
    assert found.seconds < 9  # of 10
    last = run(sandbox, f"print('y' * {LIMITS.output - 1})")
    assert (last.outcome, len(last.output)) == (Outcome.ENDED, LIMITS.output)


def test_program_that_handles_every_signal_is_killed(sandbox: Sandbox) -> None:
    source = (
        "import signal\nfor number in range(1, 65):\n"
        "  try: signal.signal(number, lambda *_: None)\n  except (OSError, ValueError): pass\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass"
    )
    assert run(sandbox, source, seconds=SECONDS).outcome is Outcome.TIMEOUT
    found = run(sandbox, source, seconds=20.0, cpu_seconds=1)
    assert found.outcome is Outcome.TIMEOUT
    assert found.seconds < 15
    assert is_well(sandbox)


def test_program_cannot_raise_its_limits_or_see_our_secrets(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    source = (
        "import os, resource\nprint('API_KEY' in os.environ, os.geteuid() == 0)\n"
        "try: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); print('raised')\n"
        "except (OSError, ValueError): print('kept')"
    )
    assert run(sandbox, source).output == "False False\nkept\n"


def test_namespaces_hide_processes_files_and_the_network(sandbox: Sandbox) -> None:
    if not sandbox._namespaces:
        pytest.skip("without namespaces they are open to it")
    source = (
        "import os, socket\nprint(os.getpid(), [p for p in os.listdir('/proc') if p.isdigit()])\n"
        f"print(os.path.exists({__file__!r}))\n"
        "try: socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError as e: print(e.errno)"
    )
    assert run(sandbox, source).output == "1 ['1']\nFalse\n101\n"  # the network is unreachable


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no filter for it")
def test_program_gets_no_namespaces_of_its_own(sandbox: Sandbox) -> None:
    # A new user namespace (flag 0x10000000) would make it root again, inside.
    source = (
        "import ctypes, os, signal, threading\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.unshare(0x10000000), ctypes.get_errno())\n"
        "clone = {'x86_64': 56, 'aarch64': 220}[os.uname().machine]\n"
        "print(libc.syscall(clone, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0), ctypes.get_errno())\n"
        "thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()\n"
        "if os.fork() == 0: os._exit(0)\n"
        "print(os.wait()[1])"
    )
    assert run(sandbox, source).output == "-1 1\n-1 1\nthread\n0\n"


def test_hash_and_random_start_alike_in_every_program(sandbox: Sandbox) -> None:
    source = "import random; print(hash('a'), random.random())"
    assert run(sandbox, source).output == run(sandbox, source).output


def test_threads_and_exit_handlers_end_before_the_program_does(sandbox: Sandbox) -> None:
    source = (
        "import atexit, threading, time\natexit.register(print, 'bye')\n"
        "threading.Thread(target=lambda: (time.sleep(.1), print('thread'))).start()\nprint('main')"
    )
    assert run(sandbox, source).output == "main\nthread\nbye\n"


def test_killed_interpreter_is_started_again(sandbox: Sandbox) -> None:
    assert is_well(sandbox)
    assert sandbox._worker is not None
    old = sandbox._worker.pid
    os.kill(old, 9)
    assert is_well(sandbox)
    assert sandbox._worker.pid != old


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_for_the_run_do_not_end_its_interpreter(
    sandbox: Sandbox, number: signal.Signals
) -> None:
    assert is_well(sandbox)
    assert sandbox._worker is not None
    before = sandbox._worker.pid
    os.kill(before, number)
    assert is_well(sandbox)
    assert sandbox._worker.pid == before


def test_warning_of_the_scheduler_does_not_end_a_program(sandbox: Sandbox) -> None:
    source = "import os, signal\nos.kill(os.getpid(), signal.SIGUSR1)\nprint('on')"
    assert run(sandbox, source).output == "on\n"


def test_program_that_kills_what_it_can_costs_itself_alone(sandbox: Sandbox) -> None:
    kills = (
        "import os\nfor pid in (os.getppid(), -1, 0):\n"
        "  try: os.kill(pid, 9)\n  except OSError: pass"
    )
    if os.geteuid() != 0 and not sandbox._namespaces:
        kills = kills.replace(", -1, 0", "")  # or it would kill us, whose user it is
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without namespaces it may kill what runs it
        found = sandbox.run([Program(source=s) for s in ("print(1)", kills, "print(2)", kills)])
    assert [execution.output for execution in found] == ["1\n", "", "2\n", ""]
    assert is_well(sandbox)


def test_a_forked_process_has_an_interpreter_of_its_own(sandbox: Sandbox) -> None:
    assert is_well(sandbox)
    with sandbox._lock:  # as if another thread were waiting for programs
        pid = os.fork()
        if not pid:
            os._exit(0 if is_well(sandbox) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert is_well(sandbox)


def test_everything_ends_when_the_user_is_killed_in_the_middle_of_a_batch(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    program = f"""
import threading, time
from posttrain.rewards import sandbox as module
module._ENVIRONMENT["TMPDIR"] = {str(tmp_path)!r}
from posttrain.rewards.sandbox import Limits, Program, Sandbox
sandbox = Sandbox(Limits(seconds=60), as_root_without_namespaces=True)
sandbox._namespaces = {sandbox._namespaces}
sandbox.run([Program(source="")])
print(sandbox._worker.pid, flush=True)
hangs = Program(source="import os, time; os.fork(); time.sleep(60)")
threading.Thread(target=sandbox.run, args=([hangs],)).start()
time.sleep(0.3)
print("busy", flush=True)
"""
    user = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert user.stdout is not None
    worker = int(user.stdout.readline())
    assert user.stdout.readline() == "busy\n"
    pids = {worker, *sandbox_kernel._descendants(worker)}
    assert len(pids) >= 3
    user.kill()
    user.communicate()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, f"{pids} are still there"
        time.sleep(0.02)
    assert list(tmp_path.iterdir()) == []


def test_everything_ends_with_close(sandbox: Sandbox) -> None:
    before = processes()
    other = Sandbox(LIMITS, as_root_without_namespaces=True)
    other._namespaces = sandbox._namespaces
    assert is_well(other)
    assert processes() - before
    other.close()
    deadline = time.monotonic() + 5
    while (processes() - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not processes() - before


class Dying:
    """Stands for a worker that ends at every program ``"kills"`` and runs all others."""

    def __init__(self, *_: object) -> None:
        self.jobs: list[str] = []
        self.said: list[str] = []

    def send(self, message: tuple[object, object]) -> None:
        _, jobs = message
        if isinstance(jobs, list):
            self.jobs = [source for source, _, _ in jobs]
            self.said = [f"{i} = 5 0" for i in range(len(jobs))]

    def line(self, seconds: float) -> str:
        if not self.said:
            return "ready"
        if self.jobs.pop(0) == "kills":
            raise WorkerGone
        return self.said.pop(0)

    def exactly(self, size: int, seconds: float) -> bytes:
        return b""

    def stop(self) -> None: ...


def test_program_at_which_the_worker_ends_twice_counts_as_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("posttrain.rewards.sandbox.WorkerProcess", Dying)
    sandbox = Sandbox(LIMITS)
    sources = ["a", "kills", "b", "kills"]
    with pytest.warns(RuntimeWarning, match="ended twice at the same program, for 2 of 4"):
        found = sandbox.run([Program(source=source) for source in sources])
    assert [execution.outcome is Outcome.ENDED for execution in found] == [True, False] * 2


class Refusing:
    """Stands for a worker that the kernel refuses namespaces."""

    def __init__(self, *_: object) -> None:
        self.wanted = False

    def send(self, message: tuple[bool, object]) -> None:
        self.wanted = message[0]

    def line(self, seconds: float) -> str:
        return "refused Operation not permitted" if self.wanted else "ready"

    def stop(self) -> None: ...


@pytest.mark.parametrize(("user", "insists"), [(0, False), (0, True), (1000, False)])
def test_root_without_namespaces_must_insist(
    monkeypatch: pytest.MonkeyPatch, user: int, insists: bool
) -> None:
    monkeypatch.setattr("posttrain.rewards.sandbox.WorkerProcess", Refusing)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    sandbox = Sandbox(LIMITS, as_root_without_namespaces=insists)
    if user == 0 and not insists:
        with pytest.raises(UsageError, match=r"not permitted.*as_root_without_namespaces=True"):
            sandbox._start()
    else:
        with pytest.warns(RuntimeWarning, match="not permitted.*open to them"):
            sandbox._start()
        sandbox._start()  # says so once


def test_module_that_cannot_be_imported_is_named() -> None:
    sandbox = Sandbox(LIMITS, imports=("no_such_module",))
    with pytest.raises(RuntimeError, match="no_such_module"):
        sandbox.run([Program(source="")])


@pytest.mark.parametrize(
    "limit", [{"seconds": 0.0}, {"seconds": float("inf")}, {"memory": 0}, {"processes": 0}]
)
def test_limits_that_are_none_are_refused(limit: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(limit))}="):
        Limits(**limit)  # type: ignore[arg-type]  # integers stay integers
