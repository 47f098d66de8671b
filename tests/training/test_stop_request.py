"""Signals that ask a training to stop."""

import os
import signal

import pytest

from diffjax.training.stop_request import STOPPING, StopRequest


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_is_a_request_and_the_second_has_its_usual_effect(number):
    seen = []
    before = signal.signal(number, lambda n, _: seen.append(n))
    try:
        with StopRequest() as stop:
            assert stop.signal is None
            os.kill(os.getpid(), number)
            assert stop.signal == number and not seen
            os.kill(os.getpid(), number)
            assert seen == [number]
    finally:
        signal.signal(number, before)


def test_all_that_people_and_schedulers_send_are_requests():
    assert {"SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"} == {s.name for s in STOPPING}


def test_a_signal_that_is_ignored_stays_ignored():
    """nohup has SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)
