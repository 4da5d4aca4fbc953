"""A run in hand: its config, tokenizer and parameters from the run directory, on whatever devices there are."""

import contextlib
import dataclasses
import typing

import jax

from gptjax import attention, data, evaluate, meshes, rundir, sample, step
from gptjax.checkpoint import Checkpointer
from gptjax.config import CheckpointConfig, Config, MeshConfig, TrainConfig
from gptjax.data import tokenizers
from gptjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    directory: rundir.RunDirectory
    config: Config
    tokenizer: data.Tokenizer
    program: step.Program
    params: dict
    step: int


@contextlib.contextmanager
def open_model(workdir: str, step_number: int | None = None, ema: bool = False) -> typing.Iterator[LoadedRun]:
    """The parameters of a checkpoint (None: the newest), copied to every local device; only they are read.

    Raises UserError: no run there, no such step, no moving average kept.
    """
    directory = rundir.open_run(workdir)
    config = directory.config()
    steps = directory.steps()
    if not steps:
        raise UserError(f"--workdir={workdir} has no checkpoint yet; train it further.")
    if ema and config.optim.ema_decay is None:
        raise UserError(f"--ema: the run in {workdir} kept no moving average (optim.ema_decay=None).")
    devices = jax.devices()
    batch = -(-config.eval_batch_size // len(devices)) * len(devices)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, attention="auto"),
        mesh=MeshConfig(replica=-1, fsdp=1),
        train=TrainConfig(steps=1, batch_size=batch, vocab_chunks=config.train.vocab_chunks),
        checkpoint=CheckpointConfig(),
        eval=dataclasses.replace(config.eval, batch_size=batch, every_steps=None),
    )
    mesh = meshes.make_mesh(config, devices)
    kernel, _ = attention.choose_kernel(config, devices[0].platform, mesh.shape["sequence"])
    with jax.set_mesh(mesh):
        program = step.build(config, mesh, kernel)
        checkpointer = Checkpointer(directory.checkpoints)
        try:
            name = "ema" if ema else "params"  # they need not have one dtype
            abstract = jax.tree.map(
                lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
                getattr(program.abstract_state, name),
                getattr(program.state_sharding, name),
            )
            chosen = steps[-1] if step_number is None else step_number
            params = checkpointer.restore_params(chosen, abstract, name)
        finally:
            checkpointer.close()
        yield LoadedRun(directory, config, data.load_tokenizer(directory.tokenizer), program, params, chosen)


def evaluate_run(loaded: LoadedRun) -> dict[str, evaluate.Evaluation]:
    """On the held-out text of the run: of "all" first where it has several sources, and of each.

    Raises UserError if that text cannot be had, or is another one now."""
    store, objective = data.open_text(loaded.config.data, loaded.config.model.context_length)
    tokenizers.check_same(store.tokenizer, loaded.tokenizer)
    loaded.directory.check_text(store)
    rows = evaluate.held_out_rows(loaded.config, store, objective)
    return evaluate.evaluate_sources(loaded.program, loaded.params, rows, loaded.config.eval_batch_size)


def sample_run(loaded: LoadedRun, prompt: str | None, **settings) -> list[str]:
    """Texts that go on from prompt, prompt included. settings: of `sample.generate`.

    A prefix LM reads its prompt token by token here, as it reads what follows, not both ways as in training.

    Raises UserError: the run's objective does not teach to go on with a text.
    """
    if not loaded.config.data.writes_on:
        raise UserError(
            f"a model of data.objective={loaded.config.data.objective!r} fills in what is missing in a text and cannot go on with one;"
            " judge it with gptjax eval, or sample a run of another objective."
        )
    ids = sample.prompt_ids(loaded.tokenizer, prompt)
    eot_id = loaded.tokenizer.eot_id
    new = sample.generate(loaded.program.graph, loaded.params, ids, eot_id=eot_id, **settings)
    return [(prompt or "") + loaded.tokenizer.decode(ids) for ids in new]
