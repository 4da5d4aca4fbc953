"""The training loop: from a config and a run directory to a trained model, through any number of interruptions.

    prepare   text -> tokens, config resolved, mesh, kernel, compiled program   (Session)
    loop      call -> metrics of the call before -> evaluation, checkpoint      (Loop)
    finish    last evaluation and checkpoint, a sample

What one step computes is in `step.py`. The device never waits for the host: metrics are read one call late.
"""

import dataclasses
import json
import math
import time
import typing

import jax
import numpy as np

from gptjax import (
    attention,
    data,
    evaluate,
    executable,
    flops,
    hardware,
    interrupt,
    metrics,
    report,
    rundir,
    schedule,
    sharding,
    step,
)
from gptjax.checkpoint import Checkpointer
from gptjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Session:
    """Everything a run needs that does not change while it goes on."""

    config: typing.Any  # resolved: with vocab_size
    store: data.TokenStore
    program: step.Program
    kernel: str
    kernel_reason: str
    peak_flops: float  # per device and second
    peak_source: str

    @property
    def device_count(self) -> int:
        return self.program.mesh.size


def train(config, workdir: str, allowed_changes: tuple[str, ...] = (), executable_path: str | None = None) -> int:
    """Trains, or goes on with the run in workdir. Returns the exit code: 0, SAVED_AND_STOPPED or DIVERGED.

    executable_path: a train step that `gptjax plan --save_executable` compiled for this config.

    Raises UserError for anything that stands in the way before the first step.
    """
    started = time.monotonic()
    progress = metrics.Progress()
    directory = rundir.open_run(workdir)
    with interrupt.StopRequest() as stop:
        session = prepare(config)
        if executable_path is not None:
            session = with_executable(session, executable_path)
        resumed_config = _check_directory(directory, session, allowed_changes)
        with jax.set_mesh(session.program.mesh):
            for line in report.header(session, directory, resumed=resumed_config):
                progress.message(line)
            checkpointer = Checkpointer(directory.checkpoints, session.config.checkpoint)
            loop = Loop(session, directory, checkpointer, progress, stop, started)
            try:
                return loop.run()
            finally:
                loop.close()


def prepare(config, devices=None) -> Session:
    """Data, mesh, kernel and program of a config. Raises UserError for what does not fit together."""
    mesh = sharding.make_mesh(config, devices)  # first, because it is quick to find a wrong one
    device = mesh.devices.flat[0]
    schedule.learning_rate(config, 0)
    store = data.prepare(config.data)
    config = with_vocabulary(config, store.tokenizer)
    sharding.check_fit(config, mesh.shape)
    kernel, reason = attention.choose_kernel(config, device.platform)
    program = step.build(config, mesh, kernel)
    peak = hardware.peak_flops(device.device_kind)
    source = f"published for {device.device_kind}" if peak else "measured here, a plain matmul"
    peak = peak or hardware.measure_matmul_flops(config.model.dtype) / mesh.size
    return Session(config, store, program, kernel, reason, peak, source)


def with_executable(session: Session, path: str) -> Session:
    """session with the compiled train step of a file; a batch ramp's smaller batches are still compiled here."""
    program = session.program
    loaded = executable.load(path, session.config, program.mesh, session.kernel)
    full = (session.config.train.steps_per_call, session.config.train.batch_size)

    def train_call(state, batch, learning_rate_S):
        call = loaded if batch["token_BT"].shape[:2] == full else program.train
        return call(state, batch, learning_rate_S)

    return dataclasses.replace(session, program=dataclasses.replace(program, train=train_call))


def with_vocabulary(config, tokenizer):
    """config with model.vocab_size set. Raises UserError if it is given and smaller than the tokenizer's."""
    given = config.model.vocab_size
    if given is not None and given < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size={given} is smaller than the tokenizer's {tokenizer.vocab_size} entries;"
            f" use {tokenizer.vocab_size}, or None."
        )
    return config if given else config.replace(model={"vocab_size": tokenizer.vocab_size})


def _check_directory(directory: rundir.RunDirectory, session: Session, allowed: tuple[str, ...]) -> bool:
    """Writes what describes a new run, or checks that an old one may go on. True if there is something to resume."""
    if directory.exists():
        rundir.check_resume(directory.config(), session.config, allowed)
        before = json.loads((directory.path / "manifest.json").read_text())
        if before["data"]["fingerprint"] != session.store.fingerprint and "data" not in allowed:
            raise UserError(
                f"the text or tokenizer is not the one this run was started with (fingerprint"
                f" {before['data']['fingerprint'][:12]}, now {session.store.fingerprint[:12]}); restore the text,"
                " use a new --workdir, or allow it with --allow_change=data."
            )
    elif directory.path.exists() and any(directory.path.iterdir()):
        raise UserError(f"--workdir={directory.path} holds files but no run; use an empty or a new directory.")
    resumed = bool(directory.steps())
    data.save_tokenizer(session.store.tokenizer, directory.tokenizer)
    directory.write_json("manifest.json", rundir.manifest(session.config, session.store, rundir.command_line()))
    directory.write_config(session.config)  # last: with it the directory is a run
    return resumed


class Loop:
    """The state of a run that is going on."""

    def __init__(self, session: Session, directory, checkpointer: Checkpointer, progress, stop, started: float):
        config = session.config
        self.session, self.config, self.program = session, config, session.program
        self.directory, self.checkpointer, self.progress, self.stop = directory, checkpointer, progress, stop
        self.total_steps = schedule.total_steps(config)
        self.rows = data.TrainRows(
            session.store.train, config.model.context_length, config.data.seed, config.data.mask_documents
        )
        self.eval_rows = eval_rows(config, session.store)
        saved = checkpointer.steps()
        self.step = saved[-1] if saved else 0
        self.saved_step = self.evaluated_step = self.step if saved else -1
        self.started = started
        self.log = metrics.MetricsLog(
            directory.path,
            resume_step=self.step,
            tensorboard=config.train.tensorboard,
            wandb_project=config.train.wandb_project,
            config=config,
        )
        self.throughput = metrics.Throughput()
        self.unread = None  # (first step, learning rates, metrics still on the device)
        self.compiled = self.profiling = False
        self.state = self._first_state()

    def _first_state(self) -> step.TrainState:
        if self.step == 0:
            return self.program.init()
        state = self.checkpointer.restore(self.step, self.program.abstract_state, self.program.state_sharding)
        self.progress.message(f"resumed from step {self.step} of {self.directory.checkpoints}")
        self.log.write("event", self.step, event="resumed")
        return state

    def run(self) -> int:
        """Trains to the end, or until asked to stop. Returns the exit code."""
        config = self.config
        try:
            with data.Prefetcher(
                self._read_call, self.step // config.train.steps_per_call, config.data.prefetch
            ) as calls:
                while self.step < self.total_steps and not self.stop:
                    self._call(calls.next())
                    self._between_calls()
            self._drain()
            if not self.stop:
                self._evaluate()
            self._save()
            self.checkpointer.wait()
        except Diverged as error:
            self.progress.message(f"gptjax: {error}")
            self.log.write("event", error.step, event="diverged")
            return interrupt.DIVERGED
        if self.stop:
            saved = f"saved step {self.saved_step}" if self.saved_step > 0 else "stopped before the first step"
            self.progress.message(f"{saved}; run the same command again to go on")
            return interrupt.SAVED_AND_STOPPED
        self.progress.close()
        for line in report.ending(self.session, self.directory, self.state):
            self.progress.message(line)
        return 0

    def close(self) -> None:
        self._profile(stop=True)
        self.progress.close()
        self.log.close()
        self.checkpointer.close()

    def _read_call(self, call: int) -> tuple[dict, np.ndarray]:
        """Batches [S, B, ...] on the devices and learning rates [S] of one dispatch; runs in the prefetch thread."""
        config, count = self.config, self.config.train.steps_per_call
        steps = range(call * count, (call + 1) * count)
        size = schedule.batch_size(config, steps[0])
        first_rows = [schedule.rows_before(config, s) for s in steps]

        def read(start: int, stop: int) -> dict:
            parts = [self.rows.rows(first + start, first + stop) for first in first_rows]
            return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

        batch = evaluate.device_batch(read, size, self.program.train_batch_sharding, dim=1)
        return batch, np.array([schedule.learning_rate(config, s) for s in steps], np.float32)

    def _call(self, inputs) -> None:
        """Dispatches the next steps and reads the metrics of those before."""
        batch, learning_rates = inputs
        self._profile()
        self.state, on_device = self.program.train(self.state, batch, learning_rates)
        previous, self.unread = self.unread, (self.step, learning_rates, on_device)
        self.step += len(learning_rates)
        if previous is not None:
            self._record(*previous)
        if not self.compiled:  # the first numbers at once, and the clock starts after them
            self.compiled = True
            self._drain()
            self.throughput.take()
            self.log.write("event", self.step, event="first_call", seconds=time.monotonic() - self.started)

    def _drain(self) -> None:
        """Reads the metrics still on the device. Raises Diverged."""
        if self.unread is not None:
            unread, self.unread = self.unread, None
            self._record(*unread)

    def _record(self, first_step: int, learning_rates, on_device) -> None:
        """Logs the steps of one call. Raises Diverged for a loss or norm that is not finite."""
        values = jax.device_get(on_device)
        for i, rate in enumerate(learning_rates):
            numbers = {name: np.asarray(value[i], np.float64).tolist() for name, value in values.items()}
            taken = first_step + i + 1
            for name in ("loss", "grad_norm", "param_norm"):
                if not math.isfinite(numbers[name]):
                    raise Diverged(taken, name, numbers[name], self.saved_step)
            self.throughput.count(schedule.batch_size(self.config, taken - 1) * self.config.model.context_length)
            if taken % self.config.train.log_every == 0 or taken in (1, self.total_steps):
                self._log_step(taken, {**numbers, "learning_rate": float(rate)})

    def _log_step(self, taken: int, numbers: dict) -> None:
        tokens = schedule.tokens_before(self.config, taken)
        rate = self.throughput.take() if taken > 1 else None
        speed = {}
        if rate:
            per_token = flops.flops_per_token(self.config.model)["6n_attn_full"]
            peak = self.session.peak_flops * self.session.device_count
            left = (schedule.run_tokens(self.config) - tokens) / rate
            speed = {"tokens_per_second": rate, "mfu": flops.mfu(rate, per_token, peak), "seconds_left": left}
        memory = hardware.memory_in_use(self.program.mesh.local_devices)
        self.log.write("train", taken, **numbers, tokens=tokens, **speed, memory_bytes=memory)
        self.progress.update(report.progress_line(taken, self.total_steps, numbers, speed))

    def _between_calls(self) -> None:
        """Evaluation and checkpoint, where they are due."""
        every = self.config.eval.every_steps
        evaluation_due = every is not None and self.step % every == 0
        checkpoint_due = self.checkpointer.due(self.step)
        if evaluation_due or checkpoint_due:
            self._drain()
        self.throughput.pause()
        if evaluation_due:
            self._evaluate()
        if checkpoint_due:
            self._save()
        self.throughput.resume()

    def _evaluate(self) -> None:
        if self.evaluated_step == self.step:
            return
        averages = {} if self.state.ema is None else {"ema_": self.state.ema}
        for prefix, params in {"": self.state.params, **averages}.items():
            result = evaluate.evaluate(
                self.program, params, self.eval_rows, self.config.eval_batch_size, should_stop=lambda: bool(self.stop)
            )
            if result is None:
                return
            self.log.write("eval", self.step, **{prefix + name: value for name, value in result.as_dict().items()})
            self.progress.message(f"step {self.step:>7}  {prefix}eval {result}")
        self.evaluated_step = self.step

    def _save(self) -> None:
        if self.saved_step == self.step or self.step == 0:
            return
        self.checkpointer.save(self.state, self.step)
        self.log.flush()
        self.saved_step = self.step

    def _profile(self, stop: bool = False) -> None:
        """Starts and stops a trace so that it holds train.profile_steps whole."""
        if not self.config.train.profile_steps:
            return
        first, last = self.config.train.profile_steps
        if self.profiling and (stop or self.step >= last):
            self._drain()
            jax.profiler.stop_trace()
            self.profiling = False
            self.progress.message(f"profile of steps {first}-{last} in {self.directory.path / 'profile'}")
        elif (
            not stop
            and not self.profiling
            and self.step < last
            and self.step + self.config.train.steps_per_call >= first
        ):
            jax.profiler.start_trace(str(self.directory.path / "profile"))
            self.profiling = True


class Diverged(Exception):
    def __init__(self, step: int, name: str, value: float, saved_step: int):
        self.step = step
        saved = f"the last checkpoint is of step {saved_step}" if saved_step > 0 else "there is no checkpoint"
        super().__init__(
            f"{name} is {value} at step {step}: stopped; {saved}. Try a lower optim.peak_lr or a longer warmup."
        )


def eval_rows(config, store) -> data.EvalRows:
    return data.EvalRows(
        store.val,
        store.tokenizer.token_bytes,
        config.model.context_length,
        config.data.mask_documents,
        max_tokens=config.eval.max_tokens,
    )
