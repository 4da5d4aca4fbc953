"""The profiler trace of train.profile_steps, which few runs ask for."""

import jax

from gptjax.training.hooks import Hook


class Profile(Hook):
    """A trace by process 0 that holds the steps of train.profile_steps whole."""

    drains = False  # all processes take part in that
    doing = "profiling"

    def __init__(self, config):
        super().__init__(config)
        self._first, self._last = config.train.profile_steps
        self._tracing = False

    def begin(self, training, step: int) -> None:
        super().begin(training, step)
        if self.due(step) and not self._tracing:  # before the first call
            self._start()

    def due(self, step: int) -> bool:
        """To start before the call that holds the first step, to stop after the one that holds the last."""
        if self.training.peers.index:
            return False
        if self._tracing:
            return step >= self._last
        return step < self._last and step + self.config.train.steps_per_call >= self._first

    def run(self, state, step: int, should_stop) -> None:
        if self._tracing:
            self.close(state)
        else:
            self._start()

    def close(self, state) -> None:
        if not self._tracing:
            return
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
        self._tracing = False
        place = self.training.directory.path / "profile"
        self.training.progress.message(f"profile of steps {self._first}-{self._last} in {place}")

    def _start(self) -> None:
        jax.profiler.start_trace(str(self.training.directory.path / "profile"))
        self._tracing = True
