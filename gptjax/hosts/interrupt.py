"""SIGTERM and Ctrl-C as a wish to stop: training saves first, then exits with a code of its own."""

import abc
import os
import signal


class SignalHandler(abc.ABC):
    """Installs its _on_signal for SIGTERM and Ctrl-C while the `with` lasts."""

    def __enter__(self):
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @abc.abstractmethod
    def _on_signal(self, number, frame) -> None: ...


class StopRequest(SignalHandler):
    """After a first signal it is true; a second Ctrl-C interrupts. wish: what is done now, as the user is told."""

    def __init__(self, wish: str = "saving a checkpoint, then stopping"):
        self.signal: signal.Signals | None = None
        self._wish = wish

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def name(self) -> str:
        return "" if self.signal is None else self.signal.name

    def _on_signal(self, number, frame) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        # os.write, because the signal may have come in the middle of a write to sys.stderr
        os.write(2, f"\n{self.signal.name}: {self._wish} (Ctrl-C again stops at once)\n".encode())
