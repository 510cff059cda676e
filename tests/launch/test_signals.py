from __future__ import annotations

import os
import signal

import pytest

from launch.running import as_program
from launch.signals import STOP, HeldSignals


@pytest.mark.parametrize("number", STOP)
def test_a_held_signal_is_remembered_and_stops_nothing(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with HeldSignals(active=True) as signals:
        assert signals.received == 0
        os.kill(os.getpid(), number)
        assert signals.received == number
        os.kill(os.getpid(), signal.SIGUSR1)  # a second one, whichever the first was
        assert signals.received == number
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err == f"{number.name}: finishing this step, then saving\n"


def test_a_second_ctrl_c_stops_at_once_if_it_is_not_the_first_one_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [10.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with HeldSignals(active=True) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        clock[0] += 1.0
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        clock[0] += 0.1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_before_the_first_step_a_signal_ends_the_program_in_order(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended, as_program():
        os.kill(os.getpid(), number)
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) is before


def test_an_inactive_holder_leaves_the_handlers_alone() -> None:
    before = [signal.getsignal(number) for number in STOP]
    with HeldSignals(active=False):
        assert [signal.getsignal(number) for number in STOP] == before
