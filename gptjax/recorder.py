"""What the steps of a run leave in its log: losses, norms, speed, and a hash of all rows read.

Metrics are read one call late, so that the device never waits for the host.
"""

import math

import jax
import numpy as np

from gptjax import flops, hardware, metrics, report, schedule


class Recorder:
    """The metrics on their way from the device to the log. batch_hash: of the steps before; None: not known."""

    def __init__(self, session, log, progress, peers, batch_hash: int | None):
        self._session, self._config = session, session.config
        self._log, self._progress, self._peers = log, progress, peers
        self._total_steps = schedule.total_steps(session.config)
        self._unread = None  # (first step, learning rates, row hashes, metrics still on the device, timed)
        self._hash_before, self._own_hash = batch_hash, 0
        self.throughput = metrics.Throughput()

    def add(self, first_step: int, learning_rates, hash_S: list[int], on_device, timed: bool) -> None:
        """Takes a call that was just dispatched, and reads the one before. Raises Diverged.

        hash_S: for each step, the sum of `TrainRows.hashes` over the rows that this process read.
        timed: whether the throughput's clock ran during the call.
        """
        previous, self._unread = self._unread, (first_step, learning_rates, hash_S, on_device, timed)
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

    def _record(self, first_step: int, learning_rates, hash_S, on_device, timed: bool) -> None:
        """Logs the steps of one call. Raises Diverged for a loss or norm that is not finite."""
        values = jax.device_get(on_device)
        for i, rate in enumerate(learning_rates):
            numbers = {name: np.asarray(value[i], np.float64).tolist() for name, value in values.items()}
            taken = first_step + i + 1
            self._own_hash = (self._own_hash + hash_S[i]) % 2**64
            for name in ("loss", "grad_norm", "param_norm"):
                if not math.isfinite(numbers[name]):
                    raise Diverged(taken, name, numbers[name])
            if timed:
                self.throughput.count(schedule.batch_size(self._config, taken - 1) * self._config.model.context_length)
            if taken % self._config.train.log_every == 0 or taken in (1, self._total_steps):
                self._log_step(taken, {**numbers, "learning_rate": float(rate)}, timed)

    def _log_step(self, taken: int, numbers: dict, timed: bool) -> None:
        tokens = schedule.tokens_before(self._config, taken)
        rate = self.throughput.take() if timed else None
        speed = {}
        if rate:
            per_token = flops.flops_per_token(self._config.model)["6n_attn_full"]
            peak = self._session.peak_flops * self._session.device_count
            left = (schedule.run_tokens(self._config) - tokens) / rate
            speed = {"tokens_per_second": rate, "mfu": flops.mfu(rate, per_token, peak), "seconds_left": left}
        memory = hardware.memory_in_use(self._session.program.mesh.local_devices)
        batch_hash = self.batch_hash()
        seen = {} if batch_hash is None else {"batch_hash": batch_hash}
        epochs = self._session.rows.epochs(schedule.rows_before(self._config, taken))
        seen |= (
            {f"epochs/{source}": n for source, n in epochs.items()}
            if len(epochs) > 1
            else {"epochs": [*epochs.values()][0]}
        )
        self._log.write("train", taken, **numbers, tokens=tokens, **speed, memory_bytes=memory, **seen)
        self._progress.update(report.progress_line(taken, self._total_steps, numbers, speed))


class Diverged(Exception):
    def __init__(self, step: int, name: str, value: float):
        self.step = step
        super().__init__(f"{name} is {value} at step {step}: stopped")
