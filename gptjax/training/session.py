"""What a run is made of before its first step: text, resolved config, mesh, kernel and program (not compiled yet)."""

import dataclasses
import typing

from gptjax import flops, hardware, schedule
from gptjax.data.rows import pipeline
from gptjax.errors import UserError, imported
from gptjax.hosts import compiling
from gptjax.optim import optimizers
from gptjax.parallel import meshes
from gptjax.training import losses
from gptjax.training import program as programs
from gptjax.training.feed import Feed
from gptjax.training.step import gives_up_ranks


@dataclasses.dataclass(frozen=True)
class Session:
    """Everything a run needs that does not change while it goes on."""

    config: typing.Any  # resolved: with vocab_size
    store: typing.Any  # data.tokens.store.TokenStore
    objective: typing.Any  # data.rows.objectives.Objective
    rows: pipeline.TrainRows
    eval_rows: dict[str, pipeline.EvalRows]  # of each source
    program: programs.Program
    peak_flops: float | None  # per device and second; None: MFU is left out
    peak_source: str

    @property
    def batch_unit(self) -> int:
        """Rows of a microbatch are a multiple of it (meshes.batch_unit)."""
        return meshes.batch_unit(self.config, self.program.mesh.shape)

    @property
    def devices(self) -> str:
        """How many of which kind."""
        return f"{self.program.mesh.size} x {self.program.mesh.devices.flat[0].device_kind}"

    def feed(self, loop):
        """What gives the calls of a loop.Loop their feed.Inputs, from where it stands; use it in a `with`. In reinforcement
        learning its next() needs the state that the loop has then, and may be None: asked to stop."""
        if self.config.rl.prompts is None:
            return Feed(self, loop.rewinds, loop.step)
        return imported("gptjax.posttrain.rollout_feed:RolloutFeed", "rl.prompts")(loop)

    def mfu(self, tokens_per_second: float) -> float | None:
        """Model FLOPs utilisation, a fraction of what all devices could do; None where that is not known, as on a CPU."""
        if self.peak_flops is None:
            return None
        per_token = flops.flops_per_token(self.config.model)["6n_attn_full"]
        return flops.mfu(tokens_per_second, per_token, self.peak_flops * self.program.mesh.size)

    def memory_in_use(self) -> int:
        """Peak bytes on the fullest device of this process."""
        return hardware.memory_in_use(self.program.mesh.local_devices)


def prepare(config, devices=None, alive=lambda: None) -> Session:
    """Data, mesh, kernel and program of a config. Raises UserError for what does not fit together.

    alive: is called now and then while text is read.
    """
    mesh = meshes.make_mesh(config, devices)  # first, because it is quick to find a wrong one
    check_rows(config)
    schedule.learning_rate(config, 0)
    optimizers.check(config)
    if gives_up_ranks(config):
        from gptjax.optim import rank_budget

        rank_budget.check(config)
    store_opener = opener(config)
    if store_opener is None:
        store, objective = pipeline.open_text(config.data, config.model.context_length, alive)
    else:
        store, objective = imported(store_opener, "data")(config, alive), None
    config = config.with_vocabulary(store.tokenizer.vocab_size)
    program = programs.on_mesh(config, mesh)
    if objective is None:
        rows, eval_rows = store.rows(config, program)
    else:
        rows = pipeline.TrainRows(store, config.data, config.model.context_length, objective, alive)
        eval_rows = held_out_rows(config, store, objective)
    peak, source = hardware.peak_of(mesh.devices.flat[0], config.model.dtype)
    return Session(config, store, objective, rows, eval_rows, program, peak_flops=peak, peak_source=source)


def opener(config) -> str | None:
    """The address of a function (config, alive) -> the store of what a run learns from; None: of running text."""
    if config.rl.prompts is not None:
        return "gptjax.posttrain.prompts:open_prompts"
    return None if config.data.examples is None else config.data.examples.open


def check_rows(config) -> None:
    """Raises UserError: the loss of a Config learns from rows of another kind than its data are."""
    losses.of(config)
    name, data = config.train.loss, config.data.preferences
    wanted = getattr(losses.chosen(name), "preferences", None)
    if wanted != data:
        mend = f"set data.preferences={wanted!r}" if wanted else "use such as 'reward' or 'dpo' of preferences"
        raise UserError(f"train.loss={name!r} does not learn from data.preferences={data!r}; {mend}.")
    if data is None and config.model.task_head is None and name != "next_token":
        from gptjax.config import task_heads

        task_heads.check_needed(name)
    if config.rl.prompts is None and hasattr(losses.chosen(name), "needs_critic"):
        raise UserError(f"train.loss={name!r} learns from rewards of answers, and rl.prompts is None; set rl.prompts.")
    reference = config.train.reference
    if reference is not None and not getattr(losses.chosen(name), "has_reference", False):
        raise UserError(f"train.reference={reference!r}, but train.loss={name!r} has no reference; leave it out.")


def held_out_rows(config, store, objective) -> dict[str, pipeline.EvalRows]:
    """The held-out text of each source. Raises UserError: one has none, by its name."""
    said = {name: "the held-out text" + f" of {name!r}" * (len(store.sources) > 1) for name in store.sources}
    return {
        name: pipeline.held_out_rows(source.val)(
            source.val,
            store.tokenizer,
            config.model.context_length,
            config.data,
            objective,
            max_tokens=config.eval.max_tokens,
            name=said[name],
        )
        for name, source in store.sources.items()
    }


def with_executable(session: Session, path: str) -> Session:
    """session with the compiled train step of a file; a batch ramp's smaller batches are still compiled here."""
    from gptjax.training import executable

    program = session.program
    loaded = executable.load(path, session.config, program.mesh, program.kernel)
    compiling.meet(program.mesh.devices.flat, "loaded --executable")
    full = (session.config.train.steps_per_call, session.config.train.batch_size)

    def train_call(state, batch, learning_rate_S):
        call = loaded if next(iter(batch.values())).shape[:2] == full else program.train
        return call(state, batch, learning_rate_S)

    return dataclasses.replace(session, program=dataclasses.replace(program, train=train_call))
