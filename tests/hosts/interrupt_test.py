"""SIGTERM and Ctrl-C, sent to this process itself."""

import signal

import pytest

from gptjax.hosts import interrupt


def test_a_first_signal_is_a_wish_a_second_ctrl_c_interrupts_and_the_handlers_before_come_back(capfd):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt), interrupt.StopRequest() as stop:
        assert not stop
        signal.raise_signal(signal.SIGTERM)
        assert stop and stop.name == "SIGTERM" and "SIGTERM: saving a checkpoint" in capfd.readouterr().err
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
