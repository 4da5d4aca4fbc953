"""SIGTERM and Ctrl-C as a wish to stop: training saves first, then exits with a code of its own."""

import abc
import contextlib
import os
import signal
import threading


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
    """After a first signal it is true; a second Ctrl-C interrupts. The user is told at once, also while the main thread waits
    for a device: Python runs a handler only when that thread is back, but writes the signal's number to a pipe at once, which
    a thread reads.

    wish: what is done now, as the user is told; a function gives what is true at that moment."""

    def __init__(self, wish="saving a checkpoint, then stopping"):
        self.signal: signal.Signals | None = None
        self.wish = wish
        self._untold = [True]  # whoever pops it tells

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def name(self) -> str:
        return "" if self.signal is None else self.signal.name

    def __enter__(self):
        super().__enter__()
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True)
        self._thread.start()
        self._writer_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *error) -> None:
        signal.set_wakeup_fd(self._writer_before)
        super().__exit__(*error)
        os.write(self._writer, b"\0")  # ends the thread, also where a forked process has the pipe too
        self._thread.join()
        os.close(self._writer)

    def _listen(self, reader: int) -> None:
        while (number := os.read(reader, 1)[0]) != 0:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._tell(number)
        os.close(reader)

    def _on_signal(self, number, frame) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        self._tell(number)

    def _tell(self, number: int) -> None:
        with contextlib.suppress(IndexError):
            self._untold.pop()
            wish = self.wish() if callable(self.wish) else self.wish
            # os.write, because the signal may have come in the middle of a write to sys.stderr
            os.write(2, f"\n{signal.Signals(number).name}: {wish} (press Ctrl-C again to stop without that)\n".encode())
