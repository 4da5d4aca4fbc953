"""The typed config of a run: one frozen dataclass per section, every default here and nowhere else.

Each field says what it holds, in which unit, and, in one word of `changes.WORDS`, what a change of it changes; most change
the numbers of the training, and say nothing. A `Config` is checked once, when it is made; from there on nothing asks
whether a value makes sense. How it is read from a file and changed on the command line: `config_file.py`.

`None` means off, or "derive it" where the field says so. Lengths are in tokens, batches in sequences.
"""

import dataclasses
import math
import typing

from gptjax.config import catalogue, checks, text_kinds
from gptjax.config.mesh_fields import MeshConfig
from gptjax.config.rl_fields import RLConfig
from gptjax.config.setting import Shown, setting
from gptjax.errors import UserError


@dataclasses.dataclass(frozen=True, repr=False)
class ModelConfig(Shown):
    """A decoder-only transformer, or an LSTM, which takes fewer of these (catalogue.py). The defaults are GPT-2 small."""

    architecture: str = setting("gpt", "kind of model: gpt | lstm")
    vocab_size: int | None = setting(None, "entries of the vocabulary; None: the tokenizer's")
    context_length: int = setting(1024, "tokens in a sequence")
    n_layers: int = setting(12, "transformer blocks, or LSTM layers")
    d_model: int = setting(768, "width of the residual stream, or of an LSTM's state")
    n_heads: int = setting(12, "attention heads of a layer")
    n_kv_heads: int | None = setting(None, "heads of keys and values (grouped-query attention); None: n_heads")
    head_dim: int | None = setting(None, "width of a head; None: d_model / n_heads")
    d_ff: int | None = setting(None, "width of the MLP; None: 4 * d_model")
    norm: str = setting("layernorm", "normalisation: layernorm | rmsnorm | rmsnorm_plus_one (its gain is 1 + w; Gemma)")
    norm_position: str = setting(
        "pre", "place of the norm: pre (before attention and MLP; GPT-2, GPT-3) | post (after the residual sum; GPT-1)"
    )
    norm_eps: float = setting(1e-5, "added to the variance before its square root")
    final_norm: bool = setting(True, "whether there is a norm before the output matrix")
    mlp: str = setting("gelu_tanh", "activation of the MLP: gelu_tanh | gelu | relu2 | swiglu | geglu (tanh)")
    position: str = setting("learned", "how the model knows positions: learned (an embedding each) | rope (rotary)")
    rope_theta: float = setting(10000.0, "base period of the rotary embedding, in tokens")
    rope_scaling: str | None = setting(
        None, "rotary rates for longer contexts: linear(factor=F) | dynamic(...) | llama3(...) | yarn(...); None: plain"
    )
    rope_pattern: str = setting(
        "R", "which layers rotate, a letter a layer, repeated: R (rotary) | N (no positions; SmolLM3 has RRRN)"
    )
    bias: bool = setting(True, "whether every linear map and LayerNorm has a bias")
    linear_bias: str | None = setting(
        None, "which linear maps have a bias, names with a comma between: qkv | out | mlp; None: as bias says"
    )
    tied_head: bool = setting(True, "whether the output matrix is the token embedding")
    qk_norm: bool = setting(False, "whether queries and keys of each head are RMS-normalised")
    logit_softcap: float | None = setting(None, "c: logits become c * tanh(logits / c)")
    band_width: int | None = setting(None, "tokens that an S layer of window_pattern sees; None: every layer sees all")
    window_pattern: str = setting(
        "LS", "what layers see, a letter a layer, repeated: L (all) | S (band_width tokens); GPT-3 has LS, Mistral S"
    )
    scale_embedding: bool = setting(False, "whether embeddings of tokens are multiplied by sqrt(d_model) (Gemma)")
    task_head: str | None = setting(None, "a head beside that of the language model, such as classes(n=2); None: none")
    embed_dropout: float = setting(0.0, "share of the entries of the embeddings that dropout zeroes")
    attention_dropout: float = setting(0.0, "share of the attention weights that dropout zeroes")
    residual_dropout: float = setting(
        0.0, "share of each layer's output that dropout zeroes; lstm: of each LSTM layer's output"
    )
    init_std: float = setting(0.02, "standard deviation of the initial matrices")
    position_init_std: float = setting(0.02, "standard deviation of the initial learned positions")
    scale_residual_init: bool = setting(
        True, "whether matrices that write to the residual stream start at init_std / sqrt(2 n_layers)"
    )
    parametrization: str = setting(
        "standard", "how learning rates and initial values depend on width and depth: standard | mup | completep"
    )
    base_width: int | None = setting(None, "mup, completep: the d_model that the values of optim were tuned for")
    base_depth: int | None = setting(None, "completep: the n_layers that the values of optim were tuned for")
    base_d_ff: int | None = setting(
        None, "mup, completep: the d_ff that they were tuned for; None: in proportion to the width"
    )
    attention_scale: str | None = setting(
        None, "factor of q k: sqrt (1/sqrt(head_dim)) | linear (1/head_dim); None: by parametrization"
    )
    adapter: str | None = setting(
        None,
        "parts added to a frozen model: lora | rslora | dora | ia3 | bottleneck | prefix | prompt, or NAME(PARAMETER=VALUE)",
    )
    critic: str | None = setting(
        None,
        "what tells the reward still to come, for PPO: shared | separate, or separate(PARAMETER=VALUE); None: none",
    )
    dtype: str = setting(
        "bfloat16", "number format of the matmuls: bfloat16 | float32; that of the parameters is optim.param_dtype"
    )
    attention: str = setting(
        "auto", "attention kernel: auto (the fastest that runs here) | xla | cudnn | triton | splash", "rounding"
    )
    remat: str = setting(
        "none",
        "what the backward pass computes again: none | dots | attention | mlp | full | offload (full, inputs on host)",
        "rounding",
    )
    scan_unroll: int = setting(
        1, "layers that one turn of the loop over layers computes; more is faster on a CPU", "rounding"
    )

    @property
    def has_attention(self) -> bool:
        """Whether its layers attend, as the entry of its architecture says. Raises UserError for an unknown one."""
        return catalogue.entry(self.architecture).has_attention

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.d_model // self.n_heads

    @property
    def ff_size(self) -> int:
        return self.d_ff or 4 * self.d_model

    @property
    def padded_vocab_size(self) -> int:
        """vocab_size rounded up to a multiple of 128, so that it can be sharded. Padded logits are masked."""
        return -(-self.vocab_size // 128) * 128

    @property
    def layer_period(self) -> int:
        """Layers after which window_pattern and rope_pattern repeat."""
        return math.lcm(1 if self.band_width is None else len(self.window_pattern), len(self.rope_pattern))

    @property
    def max_dropout(self) -> float:
        of_adapter = 0.0 if self.adapter is None else catalogue.adapter(self.adapter).dropout_rate
        return max(self.embed_dropout, self.attention_dropout, self.residual_dropout, of_adapter)

    @property
    def prefix_length(self) -> int:
        """Keys and values that an adapter puts before every sequence."""
        return 0 if self.adapter is None else catalogue.adapter(self.adapter).prefix_length

    @property
    def shown_shape(self) -> str:
        if not self.has_attention:
            return f"{self.n_layers} {self.architecture.upper()} layers, width {self.d_model}"
        return f"{self.n_layers} layers, width {self.d_model}, {self.n_heads} heads of {self.head_size}"

    def with_architecture(self, name: str, **fields) -> "ModelConfig":
        """A copy of another architecture and with other fields; what that architecture does not have is at its default."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        foreign = {field: defaults[field] for field in catalogue.entry(name).foreign}
        return dataclasses.replace(self, architecture=name, **foreign | fields)


@dataclasses.dataclass(frozen=True, repr=False)
class DataConfig(Shown):
    TRAIN_BYTES: typing.ClassVar = 100_000_000  # of text that a SentencePiece model is trained on, at most

    source: str = setting(
        "corpus",
        "corpus (ships with gptjax) | text | jsonl | parquet | arrayrecord | warc | tfds | hf | prepared, or KIND:PATH",
    )
    path: str | None = setting(
        None, "a file, folder, glob, folder of `gptjax prepare`, or hf's NAME[/CONFIG]; alone: text", "place"
    )
    text_field: str = setting("text", "jsonl, parquet, tfds, hf: the field that holds the text of a document")
    separator: str | None = setting(None, "text: a line that separates two documents; None: each file is one document")
    tfds_name: str | None = setting(None, 'tfds: the dataset, such as "lm1b" or "wikipedia/20230601.en:1.0.0"')
    tfds_split: str = setting("train", "tfds: the split to train on")
    tfds_dir: str | None = setting(None, "tfds: the folder of its datasets; None: TFDS's own default", "place")
    hf_split: str = setting("train", "hf: the split to train on")
    mixture: dict[str, str] | None = setting(None, 'instead of source: {name: "KIND:PATH" or a folder}', "place")
    weights: dict[str, float] | None = setting(
        None, "share of each source of the mixture in the rows, on any scale; None: in proportion to their rows"
    )
    weight_stages: tuple[tuple[int, dict[str, float]], ...] = setting(
        (), "(tokens, weights): the weights from that many trained tokens on"
    )
    val_fraction: float = setting(0.1, "share of the text that is held out for evaluation")
    val_split: str = setting(
        "tail", "which text is held out: tail (the last characters) | document (documents chosen by hash)"
    )
    tokenizer: str | None = setting(
        None,
        "bytes | chars | sentencepiece | gpt2 | hf, or KIND:PATH, or a folder; None: of `prepared`, or sentencepiece",
    )
    tokenizer_path: str | None = setting(
        None, "file or folder of the tokenizer: a SentencePiece model, gpt2's vocabulary, hf's tokenizer.json", "place"
    )
    tokenizer_vocab_size: int = setting(32000, "entries of a SentencePiece tokenizer that is trained here")
    packing: str = setting(
        "concat",
        "how documents fill rows: concat (end to end, cut where a row ends) | best_fit (whole documents, kept apart)",
    )
    mask_documents: bool = setting(
        False, "concat: whether documents in one row do not see each other, and positions start again in each"
    )
    objective: str = setting(
        "next_token", "what the model learns to predict: next_token | fim | prefix_lm | masked_lm | span_corruption"
    )
    task: str | None = setting(None, "labelled examples in place of text, such as classify(text='text'); None: text")
    preferences: str | None = setting(
        None, "chat: the records judge answers: compared (pairs, rankings, scores) | judged (thumbs); None: they don't"
    )
    fim_rate: float = setting(0.5, "fim: share of the documents whose middle moves to the end")
    fim_spm_rate: float = setting(0.5, "fim: share of those documents that start with the suffix")
    mask_rate: float = setting(0.15, "masked_lm, span_corruption: share of the tokens that is hidden")
    span_length: float = setting(3.0, "span_corruption: mean length of a hidden span, in tokens")
    chat: str | None = setting(
        None,
        "the documents are conversations, in this format: gptjax | chatml | llama3 | smollm2 | template:FILE; None: text",
    )
    chat_loss: str = setting("assistant", "chat: which tokens are targets: assistant | last (answer) | all")
    chat_overflow: str = setting(
        "drop", "chat: what becomes of a conversation longer than a row: drop | cut (keep its beginning) | refuse"
    )
    cache_dir: str = setting("~/.cache/gptjax", "folder that keeps tokens between runs", "nothing")
    seed: int = setting(0, "seed of the order of the rows")
    prefetch_workers: int = setting(
        0, "processes that read batches ahead; 0: a thread of the training process does", "nothing"
    )

    @property
    def examples(self) -> text_kinds.Examples | None:
        """What its rows are in the place of running text; None: they are text."""
        kinds = {"task": self.task, "preferences": self.preferences}
        return next((text_kinds.EXAMPLES[name] for name, value in kinds.items() if value is not None), None)

    @property
    def examples_field(self) -> str:
        """The field that asks for `examples`, as it was typed."""
        name = "task" if self.task is not None else "preferences"
        return f"data.{name}={getattr(self, name)!r}"

    @property
    def documents_apart(self) -> bool:
        """Whether the documents packed into a row see only themselves."""
        return self.mask_documents or self.packing == "best_fit"

    @property
    def sees_ahead(self) -> bool:
        """Whether some tokens are seen by earlier ones too: a batch has prefix_BL."""
        return self._objective.sees_ahead

    @property
    def writes_on(self) -> bool:
        """Whether a model learns what follows a text, and not only what is missing in it."""
        return self._objective.writes_on

    @property
    def predicts_in_place(self) -> bool:
        """Whether a token is predicted at its own position instead of the one before: a batch has target_BL."""
        return self._objective.predicts_in_place

    @property
    def _objective(self) -> text_kinds.Objective:
        return text_kinds.OBJECTIVES.get(self.objective, text_kinds.NEXT_TOKEN)  # another name is refused with the text


@dataclasses.dataclass(frozen=True, repr=False)
class OptimConfig(Shown):
    name: str = setting("adamw", "optimizer: adamw | adafactor | lion | muon | sgd")
    peak_lr: float = setting(6e-4, "learning rate at the end of the warmup", "schedule")
    schedule: str = setting(
        "cosine", "after the warmup: constant | cosine | linear | rsqrt | wsd, or NAME(PARAMETER=VALUE)", "schedule"
    )
    warmup_steps: int | None = setting(
        None, "steps over which the learning rate rises from 0; None: no warmup", "schedule"
    )
    warmup_tokens: int | None = setting(None, "the warmup in tokens, instead of warmup_steps", "schedule")
    decay_steps: int | None = setting(
        None, "step at which the decay ends, warmup included; None: the end of the run", "schedule"
    )
    decay_tokens: int | None = setting(None, "the end of the decay in tokens, instead of decay_steps", "schedule")
    final_lr_fraction: float = setting(0.1, "share of peak_lr that is left after the decay", "schedule")
    cooldown_fraction: float = setting(0.2, "wsd: share of the decay span in which the learning rate falls", "schedule")
    beta1: float = setting(
        0.9, "adamw, muon's AdamW part: decay rate of the average of gradients; lion: its weight in an update"
    )
    beta2: float = setting(
        0.95,
        "adamw, muon's AdamW part: decay rate of the average of squared gradients; lion: of gradients",
    )
    eps: float = setting(1e-8, "adamw, muon's AdamW part: added to the square root of the average of squared gradients")
    momentum: float = setting(0.95, "sgd, muon: decay rate of the average of gradients")
    muon_lr_ratio: float = setting(0.1, "muon: learning rate of its AdamW part, as a share of peak_lr")
    weight_decay: float = setting(0.1, "decoupled weight decay of matrices; biases and gains never decay")
    decay_embeddings: bool = setting(False, "whether the embeddings decay too, and with them a tied head")
    layer_lr_decay: float | None = setting(
        None, "share of the learning rate that a layer has of that of the layer above it; None: all learn alike"
    )
    critic_lr_ratio: float = setting(1.0, "learning rate of a critic, as a share of peak_lr")
    clip_norm: float | None = setting(
        1.0, "largest norm of the whole gradient; a larger one is scaled down; None: no clipping"
    )
    skip: str = setting(
        "none",
        "which updates are left out: none | nonfinite (loss or gradient) | outliers (of either, and nonfinite)",
    )
    skip_sigma: float = setting(6.0, "outliers: standard deviations above the mean from which a value is an outlier")
    skip_window: int = setting(128, "outliers: number of past updates that mean and deviation are taken over")
    ema_decay: float | None = setting(
        None, "decay rate of a moving average of the parameters, kept in float32; None: no average is kept"
    )
    moment_dtype: str = setting(
        "float32", "number format of the optimizer's moments between steps: float32 | bfloat16 (rounded stochastically)"
    )
    param_dtype: str = setting(
        "float32", "number format of the parameters between steps: float32 | bfloat16 (rounded stochastically)"
    )


@dataclasses.dataclass(frozen=True, repr=False)
class TrainConfig(Shown):
    steps: int | None = setting(None, "optimizer steps in the run", "schedule")
    tokens: int | None = setting(
        None, "length of the run in tokens, instead of steps; the last step may go over it", "schedule"
    )
    epochs: float | None = setting(
        None, "length of the run in epochs of its text, instead of steps; config.json has the steps", "schedule"
    )
    batch_size: int = setting(512, "sequences in a step", "schedule")
    batch_ramp_start: int | None = setting(None, "sequences in the first step; None: no ramp", "schedule")
    batch_ramp_increment: int | None = setting(None, "sequences added at a time", "schedule")
    batch_ramp_tokens: int | None = setting(None, "tokens until the full batch is reached", "schedule")
    microbatches: int = setting(
        1, "parts of a step's batch that are computed one after another, their gradients summed"
    )
    steps_per_call: int = setting(1, "optimizer steps in one dispatch to the device")
    vocab_chunks: int = setting(
        1, "parts of the vocabulary that the loss goes through one by one: it holds float32 logits of one part"
    )
    loss: str = setting("next_token", "what is minimised: a name of training.losses.LOSSES, or NAME(PARAMETER=VALUE)")
    lm_coef: float = setting(0.0, "task heads: weight of the language model's loss beside the head's (GPT-1: 0.5)")
    z_loss: float | None = setting(None, "next_token: weight of mean(logsumexp(logits)^2) in the loss; None: none")
    label_smoothing: float | None = setting(
        None,
        "next_token: share of the target's probability that goes to all entries of the vocabulary alike; None: none",
    )
    neftune_alpha: float | None = setting(
        None, "next_token: alpha of uniform noise on embeddings, of size alpha / sqrt(tokens * d_model); None: none"
    )
    seed: int = setting(0, "seed of initialisation and dropout")
    start_from: str | None = setting(
        None, "a run directory whose parameters this run starts from, instead of random ones"
    )
    start_step: str | None = setting(
        None, "which of its checkpoints: a number, or best (the lowest held-out loss); None: the newest"
    )
    critic_from: str | None = setting(
        None, "a run whose newest parameters a separate critic starts from, its score head as the value head"
    )
    reference: str | None = setting(
        None,
        "losses of preferences: a run directory whose newest parameters are the reference; None: those of this run's start",
    )
    trainable: str | None = setting(
        None,
        "parameters that are trained, by names or globs with commas between; None: adapter and task head, else all",
    )
    stop_metric: str | None = setting(
        None,
        "number of the held-out evaluations (loss, ema_loss ...) that ends the run when it improves no more; None: none",
        "schedule",
    )
    stop_patience: int = setting(3, "evaluations in a row without improvement that end the run", "schedule")
    stop_change: float = setting(0.0, "change of stop_metric up to which it has not improved", "schedule")
    max_skips: int = setting(
        10, "updates left out in a row after which the run ends, or goes back to a checkpoint", "recovery"
    )
    max_rollbacks: int = setting(
        0, "times that a diverging run goes back to a checkpoint and leaves out the text after it", "recovery"
    )
    log_every: int = setting(10, "steps from one line of the log to the next", "nothing")
    log_activations: bool = setting(
        False, "whether the log has the RMS of each layer's activations and the largest attention logit", "measurement"
    )
    log_noise_scale: bool = setting(
        False,
        "whether the log has the gradient noise scale and the critical batch; needs microbatches >= 2",
        "measurement",
    )
    profile_steps: tuple[int, int] | None = setting(None, "(first, last) step that the profiler traces", "nothing")
    stall_seconds: float | None = setting(
        3600.0,
        "seconds without a sign of life after which the run ends itself; None: never",
        "nothing",
    )
    tensorboard: bool = setting(True, "whether TensorBoard files are written too", "nothing")
    wandb_project: str | None = setting(None, "project of Weights & Biases to log to; None: none", "nothing")


@dataclasses.dataclass(frozen=True, repr=False)
class CheckpointConfig(Shown):
    every_steps: int | None = setting(1000, "steps from one checkpoint to the next; None: only at the end", "nothing")
    every_minutes: float | None = setting(
        None, "minutes after which a checkpoint is saved too; None: only by steps", "nothing"
    )
    keep: int = setting(2, "number of newest checkpoints that are kept", "nothing")
    keep_every: int | None = setting(
        None, "checkpoints of steps divisible by this are kept for good; None: no others", "nothing"
    )
    keep_best: str | None = setting(
        None,
        "number of the held-out evaluations by which the best checkpoint is saved and kept, beside the newest; None: none",
        "nothing",
    )
    keep_steps: tuple[int, ...] = setting(
        (), "steps whose checkpoint is saved and kept for good: where other runs branch off", "result"
    )
    on_save_failure: str = setting(
        "stop", "what follows a failed save: stop (exit code 74) | continue (and try again at the next)", "nothing"
    )


@dataclasses.dataclass(frozen=True, repr=False)
class EvalConfig(Shown):
    every_steps: int | None = setting(1000, "steps from one evaluation to the next; None: only at the end", "nothing")
    batch_size: int | None = setting(None, "sequences; None: train.batch_size / train.microbatches", "rounding")
    max_tokens: int | None = setting(None, "tokens of the held-out text that an evaluation reads; None: all", "result")
    tasks: str | None = setting(
        None, "tasks of lm-eval with commas between: task files, folders of them, names (gptjax eval --tasks)", "result"
    )
    tasks_every_steps: int | None = setting(
        None, "steps from one evaluation on tasks to the next; None: only at the end", "nothing"
    )
    tasks_limit: int | None = setting(None, "documents of each task that are read, from its first; None: all", "result")
    tasks_num_fewshot: int | None = setting(
        None, "examples before each question; None: as the task's file says", "result"
    )
    sample_prompt: str | None = setting(
        None, "text that the samples continue; None: the start of a document", "nothing"
    )
    sample_tokens: int = setting(
        0, "tokens of a sample that is printed while training and at its end; 0: none", "nothing"
    )
    sample_every_steps: int | None = setting(
        None, "steps from one sample to the next; None: only at the end", "nothing"
    )


@dataclasses.dataclass(frozen=True, repr=False)
class Config(Shown):
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    rl: RLConfig = RLConfig()

    def __post_init__(self):
        checks.check(self)

    @property
    def tokens_per_step(self) -> int:
        return self.train.batch_size * self.model.context_length

    @property
    def eval_batch_size(self) -> int:
        return self.eval.batch_size or self.train.batch_size // self.train.microbatches

    def replace(self, **sections: dict) -> "Config":
        """A checked copy: `config.replace(model={"n_layers": 2}, train={"steps": 10})`."""
        changed = {name: dataclasses.replace(getattr(self, name), **fields) for name, fields in sections.items()}
        return dataclasses.replace(self, **changed)

    def with_vocabulary(self, entries: int) -> "Config":
        """A copy with model.vocab_size, where that is None, of a tokenizer's entries. Raises UserError: it is too small."""
        size = self.model.vocab_size
        if size is not None and size < entries:
            raise UserError(
                f"model.vocab_size={size} is smaller than the tokenizer's {entries} entries; use {entries}, or None."
            )
        return self if size else self.replace(model={"vocab_size": entries})

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)
