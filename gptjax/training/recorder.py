"""What the steps of a run leave in its log: losses, norms, speed, and a hash of all rows read.

Metrics are read one call late, so that the device never waits for the host.
"""

import collections
import contextlib
import math
import time

import numpy as np

from gptjax import schedule
from gptjax.errors import Diverged
from gptjax.schedule import Rewinds
from gptjax.terminal import duration, si


class Recorder:
    """The metrics on their way from the device to the log. training: a `loop.Training`. batch_hash: of the steps before;
    None: not known. rewinds: what text the run left out."""

    def __init__(self, training, batch_hash: int | None, rewinds: Rewinds):
        self._session, self._config, self._rewinds = training.session, training.session.config, rewinds
        self._log, self._progress, self._peers = training.log, training.progress, training.peers
        self._total_steps = schedule.total_steps(self._config)
        from gptjax.training import recovery

        self._worse = recovery.WorseThanGuessing(self._config)
        self._unread = None  # (first step, learning rates, row hashes, read, timed) of the last call
        self._hash_before, self._own_hash = batch_hash, 0
        self.throughput = Throughput()

    def add(self, first_step: int, learning_rates, hash_S: list[int], read, timed: bool) -> None:
        """Takes a call that was just dispatched, and reads the one before. Raises Diverged.

        read: gives the metrics of each step, waiting for the device.
        hash_S: for each step, the sum of `TrainRows.hashes` over the rows that this process read.
        timed: whether the throughput's clock ran during the call.
        """
        previous, self._unread = self._unread, (first_step, learning_rates, hash_S, read, timed)
        if previous is not None:
            self._record(*previous)

    def drain(self) -> None:
        """Reads what is still on the device. Raises Diverged."""
        if self._unread is not None:
            unread, self._unread = self._unread, None
            self._record(*unread)

    def batch_hash(self) -> str | None:
        """Of all rows read by all processes until the last step read, as 16 hex digits; None but in process 0."""
        sums = self._peers.gather("batch_hash", self._own_hash)
        if sums is None or self._hash_before is None:
            return None
        return f"{(self._hash_before + sum(sums)) % 2**64:016x}"

    def _record(self, first_step: int, learning_rates, hash_S, read, timed: bool) -> None:
        """Logs the steps of one call. Raises Diverged where `_judge` does."""
        values = read()
        for i, rate in enumerate(learning_rates):
            numbers = {name: np.asarray(value[i], np.float64).tolist() for name, value in values.items()}
            taken = first_step + i + 1
            self._own_hash = (self._own_hash + hash_S[i]) % 2**64
            self._judge(taken, numbers)
            if self._worse.begins(numbers["loss"]):
                self._progress.message(f"step {taken:>7}  {self._worse.said(numbers['loss'])}")
                self._log.write(
                    "event", taken, event="loss_above_uniform", loss=numbers["loss"], limit=self._worse.limit
                )
            if timed:
                self.throughput.count(schedule.batch_size(self._config, taken - 1) * self._config.model.context_length)
            if taken % self._config.train.log_every == 0 or taken in (1, self._total_steps):
                self._log_step(taken, {**numbers, "learning_rate": float(rate)}, timed)

    def _judge(self, taken: int, numbers: dict) -> None:
        """Logs an update that was left out. Raises Diverged: too many in a row, or one that was made and is not finite."""
        number = int(numbers.pop("skip_reason", 0))  # 0: the update was made
        for name in ("skipped_updates", "skipped_in_a_row"):
            numbers |= {name: int(numbers[name])} if name in numbers else {}
        for name in ("param_norm",) if number else ("loss", "grad_norm", "param_norm"):
            if not math.isfinite(numbers[name]):
                raise Diverged(taken, f"{name} is {numbers[name]}")
        if not number:
            return
        from gptjax.optim import skipping

        reason = skipping.REASONS[number]
        shown = {name: value for name, value in numbers.items() if name in skipping.SHOWN}
        self._log.write("event", taken, event="update_skipped", reason=reason, **shown)
        row, most = numbers["skipped_in_a_row"], self._config.train.max_skips
        self._progress.message(f"step {taken:>7}  update left out: {skipping.said(reason, shown)}; {row} in a row")
        if row >= most:
            why = f"{row} updates in a row were left out (train.max_skips), the last one because {reason},"
            raise Diverged(taken, why, first_bad=taken - row)

    def _log_step(self, taken: int, numbers: dict, timed: bool) -> None:
        tokens = schedule.tokens_before(self._config, taken)
        rate, paused = self.throughput.take() if timed else (None, {})
        speed = {}
        if rate:
            left = (schedule.run_tokens(self._config) - tokens) / rate
            speed = {"tokens_per_second": rate, "mfu": self._session.mfu(rate), "seconds_left": left}
            speed = {name: value for name, value in speed.items() if value is not None}
        memory = self._session.memory_in_use()
        batch_hash = self.batch_hash()
        seen = {} if batch_hash is None else {"batch_hash": batch_hash}
        epochs = self._session.rows.epochs(self._rewinds.first_row(self._config, taken))
        seen |= (
            {f"epochs/{source}": n for source, n in epochs.items()}
            if len(epochs) > 1
            else {"epochs": [*epochs.values()][0]}
        )
        self._log.write("train", taken, **numbers, tokens=tokens, **speed, **paused, memory_bytes=memory, **seen)
        self._progress.update(progress_line(taken, self._total_steps, numbers, speed))


def progress_line(taken: int, total: int, numbers: dict, speed: dict) -> str:
    line = f"step {taken}/{total}  loss {numbers['loss']:.4f}  grad {numbers['grad_norm']:.2f}"
    line += f"  lr {numbers['learning_rate']:.2e}"
    if numbers.get("skipped_updates"):
        line += f"  left out {numbers['skipped_updates']}"
    if speed:
        mfu = f"  MFU {speed['mfu']:.1%}" if "mfu" in speed else ""
        line += f"  {si(speed['tokens_per_second'])} tok/s{mfu}  left {duration(speed['seconds_left'])}"
    return line


class Throughput:
    """Tokens per second of training alone: time spent on evaluation, checkpoints and compiling is taken out."""

    def __init__(self):
        self._since = time.monotonic()
        self._paused = collections.Counter()  # seconds by what was done
        self._tokens = 0

    @contextlib.contextmanager
    def paused(self, what: str):
        """The time of this `with` is taken out. what: is done in it."""
        began = time.monotonic()
        yield
        self._paused[what] += time.monotonic() - began

    def count(self, tokens: int) -> None:
        self._tokens += tokens

    def take(self) -> tuple[float, dict[str, float]]:
        """Tokens per second since the last take, and {"seconds/WHAT": seconds} of what the clock was stopped for."""
        now, paused = time.monotonic(), {f"seconds/{what}": seconds for what, seconds in self._paused.items()}
        rate = self._tokens / max(now - self._since - sum(paused.values()), 1e-9)
        self._since, self._tokens = now, 0
        self._paused.clear()
        return rate, paused
