"""A run in hand: `gptjax.load(path)`, the one door for notebook, evaluation, export and text.

A Run is a config, a tokenizer and parameters on some mesh. It reads the run directory and nothing else: no training
config, mesh or text is needed. Its methods enter that mesh by themselves; what they call takes (graph, params).
Axes as in inside.py.
"""

import collections.abc
import dataclasses
import functools
import html
import math
import os

import jax
import numpy as np
from flax import nnx

from gptjax.checkpoints import loading
from gptjax.config import bounds, catalogue, config_file
from gptjax.config.fields import Config, MeshConfig, ModelConfig
from gptjax.data.tokenizers import Tokenizer
from gptjax.errors import UserError, choose
from gptjax.evaluation import compare as comparing
from gptjax.evaluation import held_out, run_loss
from gptjax.generation import chat
from gptjax.generation.engine import Engine
from gptjax.generation.settings import Settings
from gptjax.generation.settings import names as setting_names
from gptjax.generation.text import Completion, generate, prompt_ids
from gptjax.models import architectures, attention, int8, placed
from gptjax.models.layers import READING_DTYPES
from gptjax.parallel import numerics, sharding
from gptjax.run import inside
from gptjax.run.arguments import checked
from gptjax.run.attention_maps import AttentionMaps
from gptjax.run.token_loss import TokenLoss
from gptjax.rundir import metrics, run_directory
from gptjax.start import skip_absent_accelerators


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A model with what belongs to it. Made by `load`, or by a training run of its own state."""

    directory: run_directory.RunDirectory
    config: Config  # as it was trained
    tokenizer: Tokenizer
    program: placed.Placed  # the model's functions on its mesh
    params: dict
    step: int
    item: str = "params"  # or "ema": what params are
    dtype: str | None = None  # what params were converted to; None: nothing

    @property
    def graph(self):
        """With params, what nnx.merge makes the model of, inside jit too."""
        return self.program.graph

    @property
    def mesh(self):
        return self.program.mesh

    @functools.cached_property
    def model(self) -> nnx.Module:
        """The live module."""
        return nnx.merge(self.graph, self.params)

    @property
    def model_config(self) -> ModelConfig:
        """The config of the model as it was loaded: with this dtype, and the attention kernel of this platform."""
        return self.model.config

    @functools.cached_property
    def engine(self) -> Engine:
        """What makes texts; compiled programs stay with it."""
        return Engine(self.graph, self.params, entries=self.tokenizer.vocab_size)

    @checked(further=setting_names)
    def generate(
        self,
        prompts=None,
        *,
        callback: collections.abc.Callable | None = None,
        draft=None,
        draft_tokens: int | None = None,
        **settings,
    ) -> list[Completion]:
        """Texts that go on from a prompt or each of a list, flat: num_return_sequences of the first, of the second, ...

        prompts: texts or token ids; None: the start of a document. settings: as the flags of `gptjax sample` are called,
        such as max_tokens=50, temperature=0.8, top_k=40, stop="\\n", seed=1, num_return_sequences=3, logprobs=True.
        callback(index, piece): is called with text as it comes; False from it ends that text.
        draft: what guesses tokens, so that several are read at once: "ngram", or a smaller run (a Run or its directory) of the
        same tokenizer; draft_tokens: how many at a time (4 of a run, 8 of n-grams). Texts come from the same distribution.
        A prefix LM reads its prompt token by token here, as it reads what follows, not both ways as in training.

        Raises UserError: a setting out of range, an objective that does not teach to go on with a text.
        """
        _check_writes_on(self.config)
        with numerics.on_mesh(self.mesh):
            chosen = Settings(**settings)
            engine = self.drafted(chosen, draft, draft_tokens)
            return generate(engine, self.tokenizer, prompts, chosen, callback)

    @checked()
    def drafted(self, settings: Settings, draft=None, count: int | None = None) -> Engine:
        """The engine for such settings with a draft, as `generate` has it. Raises UserError: the draft can't guess for it."""
        if draft is None and count is None:
            return self.engine
        from gptjax.run import drafting

        if isinstance(draft, str | os.PathLike) and draft != drafting.NGRAM:
            draft = load(draft, dtype=self.dtype, mesh=dict(self.mesh.shape))
        return drafting.engine(self, settings, draft, count)

    @checked(further=setting_names)
    def chat(
        self, messages, *, chat_format: str | None = None, callback: collections.abc.Callable | None = None, **settings
    ) -> Completion:
        """The answer to a conversation: a list of {"role", "content"}, or a text, which is one user's message.

        chat_format: gptjax, chatml, llama3, smollm2 or template:FILE; None: the format that the run was trained with, or
        the chat template of the model that it was imported from. settings, callback: as of `generate`.

        Raises UserError: messages out of place, a tokenizer without the format's control tokens, no format.
        """
        from gptjax.data.chat import Message, parse_messages

        values = [Message("user", messages)] if isinstance(messages, str) else messages
        sequences = Settings(**settings).num_return_sequences
        if sequences > 1:
            raise UserError(
                f"--num_return_sequences={sequences}, but run.chat returns one answer; call it for each seed."
            )
        form = self.chat_format(chat_format)
        return self.answers([parse_messages(values, "run.chat")], form, callback, **settings)[0]

    @checked(further=setting_names)
    def answers(
        self, conversations, form, callback=None, draft=None, draft_tokens: int | None = None, **settings
    ) -> list[Completion]:
        """Of several conversations, each a tuple of data.chat.Message, in a data.chat.Format; flat, as `generate`."""
        _check_writes_on(self.config)
        with numerics.on_mesh(self.mesh):
            chosen = Settings(**settings)
            engine = self.drafted(chosen, draft, draft_tokens)
            return chat.answers(engine, self.tokenizer, form, conversations, chosen, callback)

    @checked()
    def chat_format(self, name: str | None = None):
        """The data.chat.Format of a name, or of the run. Raises UserError: there is none."""
        from gptjax.config.text_kinds import FORMATS
        from gptjax.data.chat import kinds

        if name is not None:
            return kinds.chat_format(name, "--chat_format")
        form = kinds.of_run(self.config.data.chat, self.directory.tokenizer)
        if form is None:
            raise UserError(
                f"the run in {self.directory.path} was trained on no conversations and has no chat template; give"
                f" --chat_format=chatml, or another of: {', '.join(FORMATS)}, template:FILE."
            )
        return form

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint that counts, oldest first, as they are now."""
        return self.directory.steps()

    @checked(further=lambda: run_loss.SETTINGS)
    def evaluate(
        self, texts: str | list | tuple | dict | None = None, *, batch_size: int | None = None, **settings
    ) -> dict[str, held_out.Evaluation]:
        """{name: Evaluation} on the held-out text of the run, or on others, such as "text:book.txt"; of several texts also
        "all", first.

        settings: stride, max_tokens, protocol, text_field, separator, as the flags of `gptjax eval` (docs/evaluation.md).
        """
        return run_loss.evaluate_run(self, texts, batch_size=batch_size, **settings)

    @checked()
    def classify(self, examples: str | list | tuple | dict, *, batch_size: int | None = None) -> list:
        """What a model with a task head says of texts, or of records with the fields of its data.task: a Prediction of each,
        with `label` and `probability` (docs/classification.md)."""
        from gptjax.evaluation import classifying

        return classifying.classify(self, examples, run_loss.batch_rows(self, batch_size))

    @checked()
    def score(self, conversations: list | tuple, *, batch_size: int | None = None) -> np.ndarray:
        """float32: what a reward model gives to conversations, each a list of {"role", "content"} that ends with the answer
        that is judged (docs/preferences.md). Raises UserError: another model, no conversation."""
        from gptjax.evaluation import scored

        return scored.score(self, conversations, run_loss.batch_rows(self, batch_size))

    @checked()
    def at(self, step: int) -> "Run":
        """The same with the parameters of another step; nothing is compiled anew. Raises UserError as `load`."""
        number, params = _read(self.directory, step, self.item, self.dtype, self.program)
        return dataclasses.replace(self, params=params, step=number)

    @checked()
    def merged(self) -> "Run":
        """The same model without an adapter, whose part its matrices have taken up, in float32. Raises UserError: it has none,
        or one that can't be merged."""
        from gptjax.run import adapters

        return adapters.merged(self, self._placed)

    @checked()
    def with_adapter(self, path: str | os.PathLike, step: int | None = None) -> "Run":
        """The same parameters with the adapter that another run has trained on them, of a step or the newest: several adapters
        share one base in memory. Raises UserError: it was trained on others."""
        from gptjax.run import adapters

        return adapters.with_adapter(self, path, step, self._placed)

    def _placed(self, config: Config) -> placed.Placed:
        """The model of a Config, placed on this mesh in this dtype."""
        return _program(config, self.dtype, dict(self.mesh.shape))

    @property
    def metrics(self):
        """metrics.jsonl as it is now: a pandas DataFrame with a row for each line.

        `metrics.train`, `.eval`, `.tasks` and `.events` are the rows of one kind, as in `metrics.train.plot(y="loss")`."""
        from gptjax.run.metrics_frame import Metrics

        return Metrics(metrics.read_metrics(self.directory.metrics) if self.directory.metrics.exists() else [])

    # ---- inside the model

    @checked()
    def tokens(self, text: str) -> np.ndarray:
        """int32 ids of a text as the model sees a document: after end-of-text, where the tokenizer has that."""
        return prompt_ids(self.tokenizer, text)

    @checked()
    def loss(self, text: str) -> TokenLoss:
        """The loss of each token of a text.

        A text longer than the context is read in windows that begin half a context apart, the last with its end: each
        token is predicted once, from at least half a context before it.

        Raises UserError: the objective does not teach to continue a text, or the text has no token to predict.
        """
        _check_writes_on(self.config)
        ids = self.tokens(text)
        begun = int(self.tokenizer.bos_id is not None)  # with a token that is not the text's
        if len(ids) < 2:
            raise UserError(
                f"run.loss: the text has {len(ids) - begun} tokens, and none to predict; give a longer text."
            )
        loss_L = np.full(len(ids), np.nan, np.float32)
        for start, stop, fresh in _windows(len(ids), _text_length(self.config.model)):
            row = self._padded(ids[None, start:stop], extra=1)
            with numerics.on_mesh(self.mesh):
                loss_BL = inside.token_loss(self.graph, self.params, row, self.config.train.vocab_chunks)
                found = sharding.on_host(loss_BL)
            loss_L[fresh:stop] = found[0, fresh - start - 1 : stop - start - 1]
        ids, loss_L = ids[begun:], loss_L[begun:]
        return TokenLoss(ids, [self.tokenizer.spelling[i] for i in ids.tolist()], loss_L)

    @checked()
    def logits(self, tokens) -> np.ndarray:
        """Float32 [L, V] of token ids [L], or [B, L, V] of [B, L]; of a text, those of `tokens(text)`.

        Raises UserError: more than a context, ids that are none.
        """
        return self._inside(inside.logits, tokens, batch_dim=0, cut=lambda a, L: a[..., :L, :])

    @checked()
    def attention(self, text) -> AttentionMaps:
        """Attention weights [layers, heads, query, key] of a text (of `tokens(text)`), or of token ids [L]."""
        ids = self._row(text)
        self._check_is_transformer("attention maps")
        weight = self._inside(inside.attention_weights, ids, batch_dim=1, cut=lambda a, L: a[..., :L, :L])
        names = {number: name for name, number in self.tokenizer.special.items()}
        spelled = [self.tokenizer.spelling[i].decode("utf-8", errors="backslashreplace") for i in ids.tolist()]
        return AttentionMaps([names.get(i, piece) for i, piece in zip(ids.tolist(), spelled)], weight)

    @checked()
    def residuals(self, text) -> np.ndarray:
        """Float32 [N + 1, L, D]: the residual stream of a text (of `tokens(text)`), or of token ids [L], after the
        embedding and after each layer."""
        self._check_is_transformer("residual stream")
        return self._inside(inside.residuals, self._row(text), batch_dim=1, cut=lambda a, L: a[..., :L, :])

    @checked()
    def logit_lens(self, text) -> np.ndarray:
        """Float32 [N + 1, L, V]: the logits that the head makes of each of `residuals`; the last are the model's."""
        self._check_is_transformer("logit lens: it has no residual stream")
        return self._inside(inside.logit_lens, self._row(text), batch_dim=1, cut=lambda a, L: a[..., :L, :])

    def _check_is_transformer(self, what: str) -> None:
        if not self.config.model.has_attention:
            raise UserError(f"model.architecture={self.config.model.architecture!r} has no {what}.")
        if self.config.model.prefix_length:
            raise UserError(f"model.adapter={self.config.model.adapter!r} stands before the text: it has no {what}.")

    def _row(self, text) -> np.ndarray:
        ids = self._ids(text)
        if ids.ndim != 1:
            raise UserError(f"token ids of shape {ids.shape} are several texts; give the ids of one text, [L].")
        return ids

    def _ids(self, tokens) -> np.ndarray:
        """int32 [L] or [B, L]. Raises UserError: what no model could read."""
        try:
            ids = self.tokens(tokens) if isinstance(tokens, str) else np.asarray(tokens)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError("token ids have to be [L], or [B, L] with rows of one length.") from error
        if ids.ndim not in (1, 2) or ids.size == 0 or ids.dtype.kind not in "iu":
            raise UserError(
                f"{ids.dtype} of shape {ids.shape} are no token ids; expected integers [L] or [B, L], or a text."
            )
        outside = ids[(ids < 0) | (ids >= self.model_config.vocab_size)]
        if outside.size:
            last = self.model_config.vocab_size - 1
            raise UserError(f"token id {outside[0]} is outside the vocabulary; expected 0 to {last}.")
        limit = _text_length(self.config.model)
        if ids.shape[-1] > limit:
            raise UserError(
                f"{ids.shape[-1]} tokens are more than the context of {limit}; give fewer (run.loss takes more)."
            )
        return ids.astype(np.int32)

    def _inside(self, function, tokens, batch_dim: int, cut) -> np.ndarray:
        """function of tokens, padded for it, with the padding cut off again."""
        ids = self._ids(tokens)
        rows = np.atleast_2d(ids)
        padded = self._padded(rows)
        seen_BL = None
        if not self.config.data.writes_on:  # such a model sees the whole text
            seen_BL = np.broadcast_to(np.arange(padded.shape[1]) < rows.shape[1], padded.shape)
        with numerics.on_mesh(self.mesh):
            found = sharding.on_host(function(self.graph, self.params, padded, seen_BL))
        found = cut(found, rows.shape[1]).take(range(len(rows)), axis=batch_dim)
        return found if ids.ndim == 2 else found.take(0, axis=batch_dim)

    def _padded(self, rows: np.ndarray, extra: int = 0) -> np.ndarray:
        """rows in the next bucket of lengths, plus `extra`; and as many as divide over the mesh."""
        sizes = self.mesh.shape
        unit = 2 * sizes["sequence"] if sizes["sequence"] > 1 else 1
        unit *= attention.token_unit(self.model.kernel)
        length = inside.bucket(max(1, rows.shape[1] - extra), _text_length(self.config.model), unit) + extra
        shards = sizes["replica"] * sizes["fsdp"]
        padded = np.zeros((-(-len(rows) // shards) * shards, length), np.int32)
        padded[: len(rows), : rows.shape[1]] = rows
        return padded

    # ---- shown

    def __repr__(self) -> str:
        return "\n".join(f"{name + ':':<12}{value}" for name, value in self._facts().items())

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align: left">{name}</td><td style="text-align: left">{html.escape(value)}</td></tr>'
            for name, value in self._facts().items()
        )
        return f"<table>{rows}</table>"

    def _facts(self) -> dict[str, str]:
        shape, leaves = self.config.model, jax.tree.leaves(self.params)
        kept = "/".join(sorted({str(leaf.dtype) for leaf in leaves}))
        split = ", ".join(f"{axis}={size}" for axis, size in self.mesh.shape.items() if size > 1)
        device = self.mesh.devices.flat[0]
        return {
            "run": str(self.directory.path),
            "step": f"{self.step}{', averaged parameters' * (self.item == 'ema')} (of {', '.join(map(str, self.steps)) or 'none'})",
            "model": f"{architectures.entries(self.params):,} parameters, {shape.shown_shape},"
            f" context {shape.context_length}",
            "tokenizer": f"{self.tokenizer.kind}, {self.tokenizer.vocab_size:,} entries",
            "loaded": f"{kept} parameters, {self.model_config.dtype} matmuls, on {split or device}"
            + f" ({device.device_kind})" * bool(split),
        }


def _text_length(model: ModelConfig) -> int:
    """Tokens of a text that there are positions for: fewer than a context where learned ones count on behind a prefix."""
    shift = 0 if model.adapter is None else catalogue.adapter(model.adapter).position_shift
    return model.context_length - shift * (model.position == "learned")


def _windows(length: int, context_length: int):
    """(start, stop, first token that is new) of windows of at most context_length + 1 tokens, the last predicted only."""
    stop, fresh = min(length, context_length + 1), 1
    while fresh < length:
        yield max(0, stop - context_length - 1), stop, fresh
        fresh, stop = stop, min(length, stop + -(-context_length // 2))


@checked()
def load(
    path: str | os.PathLike, step: int | str | None = None, *, dtype: str | None = None, mesh=None, ema: bool = False
) -> Run:
    """The run in a directory, local or gs://, with the parameters of a step, whatever mesh wrote them.

    step: a number; "best": the one of the lowest held-out loss in metrics.jsonl; None: the newest that is as it was
    written; of newer ones that are not it says so on stderr.
    dtype: "float32" or "bfloat16", of parameters and matmuls; "int8": of the weights of the layers, with a scale for each
    output, and matmuls as in training; None: parameters as they are stored, matmuls as in training.
    mesh: such as "fsdp=4,tensor=2" or {"fsdp": 4, "tensor": 2}, of the first devices there are; None: one device.
    ema: the moving average. Memory: what stays loaded and 0.3 GB at most (docs/checkpoints.md).

    Raises UserError: no run there, no such step, no moving average kept, a mesh or dtype that cannot be; Damaged, which is
    one: the step asked for is not as it was written.
    """
    return read(path, step, dtype=dtype, mesh=mesh, ema=ema)


@checked(further=lambda: run_loss.SETTINGS)
def compare(a, b, texts=None, *, batch_size: int | None = None, **settings) -> comparing.Comparison:
    """Two runs, or two steps of one, on the same text: the difference, its standard error and a p-value, as `gptjax compare`
    prints them. a, b: Runs, or paths that `load` takes. texts: as of `Run.evaluate`; None: the held-out text of a.

    Raises UserError: text that cannot be had, or a model that is not judged by its next tokens.
    """
    run_a, run_b = (one if isinstance(one, Run) else load(one) for one in (a, b))
    return comparing.compare(run_a, run_b, texts, batch_size=batch_size, **settings)


@numerics.settings()
def read(path, step: int | str | None = None, *, dtype: str | None = None, mesh=None, ema: bool = False) -> Run:
    """`load` for commands, whose flags its errors name."""
    if isinstance(step, str) and step != "best":
        number = bounds.whole_number(step)
        if number is None:
            raise UserError(f"--step={step}: expected a number or best.")
        step = number
    skip_absent_accelerators()
    directory = run_directory.open_run(path)
    config = directory.config()
    if step == "best":
        step = loading.best_step(directory, ema)[0]
    if ema and config.optim.ema_decay is None:
        raise UserError(f"--ema: the run in {path} kept no moving average (optim.ema_decay=None).")
    if dtype is not None:
        choose(dict.fromkeys(READING_DTYPES), dtype, "dtype")
    program = _program(config, dtype, mesh)
    item = "ema" if ema else "params"
    tokenizer = directory.read_tokenizer()
    number, params = _read(directory, step, item, dtype, program)
    return Run(directory, config, tokenizer, program, params, number, item, dtype)


def _program(config: Config, dtype: str | None, mesh) -> placed.Placed:
    """The model of a trained config on a mesh for reading: nothing of its training's mesh and batches remains."""
    sizes = config_file.parse_mesh({} if mesh is None else mesh, "mesh")
    count = math.prod(sizes.values())
    devices = jax.devices() if count < 0 else jax.devices()[:count]
    devices = jax.local_devices()[:1] if mesh is None else devices
    adapter = config.model.adapter
    if dtype == "int8" and adapter is not None and catalogue.adapter(adapter).in_bytes:  # as its matrices are already
        dtype = None
    return placed.of_run(config, MeshConfig(**sizes), devices, dtype)


def _read(directory, step: int | None, item: str, dtype: str | None, program: placed.Placed) -> tuple[int, dict]:
    """(its number, the parameters of the program) of a step."""
    if program.stored is None:  # int8: of an adapter whose base is in bytes already
        return loading.read(directory, step, item, None if dtype == "int8" else dtype, program)
    number, params = loading.read(directory, step, item, None, program.stored)
    return number, int8.converted(params, program.abstract_params, program.param_sharding)


def _check_writes_on(config: Config) -> None:
    if not config.data.writes_on:
        raise UserError(
            f"a model of data.objective={config.data.objective!r} fills in what is missing in a text and cannot continue one;"
            " evaluate it with gptjax eval, or use a run of another objective."
        )
