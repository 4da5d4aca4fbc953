"""A run in hand: `gptjax.load(path)`, the one door for notebook, evaluation, export and text.

A Run is a config, a tokenizer and parameters on some mesh. It reads the run directory and nothing else: no training
config, mesh or text is needed. Its methods enter that mesh by themselves; what they call takes (graph, params).
"""

import dataclasses
import functools

import jax
from flax import nnx

from gptjax import attention, data, evaluate, evaluation, generation, meshes, model, rundir, step
from gptjax.checkpoint import Checkpointer
from gptjax.config import CheckpointConfig, Config, MeshConfig, ModelConfig, TrainConfig
from gptjax.errors import UserError, choose


@dataclasses.dataclass(frozen=True)
class Run:
    """A model with what belongs to it. Made by `load`, or by a training run of its own state."""

    directory: rundir.RunDirectory
    config: Config  # as it was trained
    tokenizer: data.Tokenizer
    program: step.Program  # the model's functions on its mesh
    params: dict
    step: int

    @property
    def graph(self):
        """With params, what nnx.merge makes the model of, inside jit too."""
        return self.program.graph

    @property
    def mesh(self):
        return self.program.mesh

    @functools.cached_property
    def model(self) -> model.GPT:
        """The live module."""
        return nnx.merge(self.graph, self.params)

    @property
    def model_config(self) -> ModelConfig:
        """Of the model as it was loaded: with this dtype, and the attention kernel of this platform."""
        return self.model.config

    @functools.cached_property
    def engine(self) -> generation.Engine:
        """What makes texts; compiled programs stay with it."""
        return generation.Engine(self.graph, self.params)

    def generate(self, prompts=None, *, callback=None, **settings) -> list[generation.Completion]:
        """Texts that go on from a prompt or each of a list, flat: num_return_sequences of the first, of the second, ...

        prompts: texts or token ids; None: the start of a document. settings: of `generation.Settings`.
        callback(index, piece): is called with text as it comes; False from it ends that text.
        A prefix LM reads its prompt token by token here, as it reads what follows, not both ways as in training.

        Raises UserError: a setting out of range, an objective that does not teach to go on with a text.
        """
        if not self.config.data.writes_on:
            raise UserError(
                f"a model of data.objective={self.config.data.objective!r} fills in what is missing in a text and cannot go"
                " on with one; judge it with gptjax eval, or sample a run of another objective."
            )
        with jax.set_mesh(self.mesh):
            return generation.generate(self.engine, self.tokenizer, prompts, generation.Settings(**settings), callback)

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, oldest first."""
        return self.directory.steps()

    def evaluate(self, texts=None, **settings) -> dict[str, evaluate.Evaluation]:
        """{name: Evaluation} on the held-out text of the run, or on others: see `evaluation.evaluate_run`."""
        return evaluation.evaluate_run(self, texts, **settings)


def load(path, step: int | None = None, *, dtype: str | None = None, mesh=None, ema: bool = False) -> Run:
    """The run in a directory, local or gs://, with the parameters of a step (None: the newest), whatever mesh wrote them.

    dtype: "float32" or "bfloat16", of parameters and matmuls; None: parameters as they are stored, matmuls as in training.
    mesh: such as {"fsdp": 4, "tensor": 2}, of the first devices there are; None: one device. ema: the moving average.

    Raises UserError: no run there, no such step, no moving average kept, a mesh or dtype that cannot be.
    """
    directory = rundir.open_run(path)
    config = directory.config()
    steps = directory.steps()
    if not steps:
        raise UserError(f"--workdir={path} has no checkpoint yet; train it further.")
    if ema and config.optim.ema_decay is None:
        raise UserError(f"--ema: the run in {path} kept no moving average (optim.ema_decay=None).")
    if dtype is not None:
        choose(model.DTYPES, dtype, "dtype")
    program = _program(config, dtype, mesh)
    checkpointer = Checkpointer(directory.checkpoints)
    try:
        name = "ema" if ema else "params"  # they need not have one dtype
        abstract = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            getattr(program.abstract_state, name),
            getattr(program.state_sharding, name),
        )
        chosen = steps[-1] if step is None else step
        params = checkpointer.restore_params(chosen, abstract, name)
    finally:
        checkpointer.close()
    if dtype is not None:
        params = jax.tree.map(lambda a: a.astype(model.DTYPES[dtype]), params)
    return Run(directory, config, data.load_tokenizer(directory.tokenizer), program, params, chosen)


def _program(config: Config, dtype: str | None, mesh) -> step.Program:
    """The functions of a trained config on a mesh for reading: nothing of its training's mesh and batches remains."""
    sizes = dict.fromkeys(MeshConfig.AXES, 1) | (mesh or {})
    count = 1
    for size in sizes.values():
        count *= size
    devices = jax.devices() if count < 0 else jax.devices()[:count]
    batch = -(-config.eval_batch_size // len(devices)) * len(devices)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, attention="auto", dtype=dtype or config.model.dtype),
        mesh=MeshConfig(**sizes),
        train=TrainConfig(steps=1, batch_size=batch, vocab_chunks=config.train.vocab_chunks),
        checkpoint=CheckpointConfig(),
        eval=dataclasses.replace(config.eval, batch_size=batch, every_steps=None),
    )
    mesh = meshes.make_mesh(config, devices)
    kernel, _ = attention.choose_kernel(config, devices[0].platform, mesh.shape["sequence"])
    return step.build(config, mesh, kernel)
