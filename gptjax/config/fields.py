"""The typed config of a run: one frozen dataclass per section, every default here and nowhere else.

A `Config` is checked once, when it is made; from there on nothing asks whether a value makes sense. How it is read
from a file and changed on the command line: `config_file.py`.

`None` means off, or "derive it" where the comment says so. Lengths are in tokens, batches in sequences.
"""

import dataclasses
import typing

from gptjax.config import checks


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer, or an LSTM, which takes fewer of these (validate.FOREIGN). The defaults are GPT-2 small."""

    architecture: str = "gpt"  # gpt | lstm
    vocab_size: int | None = None  # entries; None: the tokenizer's
    context_length: int = 1024  # tokens
    n_layers: int = 12
    d_model: int = 768
    n_heads: int = 12
    n_kv_heads: int | None = None  # grouped-query attention; None: n_heads
    head_dim: int | None = None  # None: d_model / n_heads
    d_ff: int | None = None  # width of the MLP; None: 4 * d_model
    norm: str = "layernorm"  # layernorm | rmsnorm
    norm_position: str = "pre"  # pre (GPT-2, GPT-3) | post (GPT-1)
    norm_eps: float = 1e-5
    final_norm: bool = True  # a norm before the head
    mlp: str = "gelu_tanh"  # gelu_tanh | gelu | relu2 | swiglu
    position: str = "learned"  # learned | rope
    rope_theta: float = 10000.0  # base period of the rotary embedding, in tokens
    bias: bool = True  # on every linear map and LayerNorm
    tied_head: bool = True  # the output matrix is the token embedding
    qk_norm: bool = False  # RMS-normalise queries and keys per head
    logit_softcap: float | None = None  # c: logits become c * tanh(logits / c)
    band_width: int | None = None  # tokens seen by every second layer (GPT-3's sparse layers); None: all dense
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0  # lstm: of each layer's output
    init_std: float = 0.02
    position_init_std: float = 0.02
    scale_residual_init: bool = True  # std of the maps into the residual stream times 1/sqrt(2 n_layers)
    parametrization: str = "standard"  # standard | mup | completep: what width and depth do to the numbers of optim
    base_width: int | None = None  # mup, completep: d_model at which those numbers hold
    base_depth: int | None = None  # completep: n_layers, likewise
    base_d_ff: int | None = None  # mup, completep: d_ff there; None: in proportion to width
    attention_scale: str | None = (
        None  # of q k: sqrt (1/sqrt(head_dim)) | linear (1/head_dim); None: by parametrization
    )
    dtype: str = "bfloat16"  # of the matmuls: bfloat16 | float32; parameters: see optim.param_dtype
    attention: str = "auto"  # kernel: auto | xla | cudnn | splash
    remat: str = "none"  # recomputed backward: none | dots | attention | full | offload (full, inputs on the host)
    scan_unroll: int = 1  # periods of layers in an iteration of the scan: more is faster on a CPU, slower to compile

    @property
    def has_attention(self) -> bool:
        """Whether its layers attend, as the counts of its architecture say. Raises UserError for an unknown one."""
        from gptjax import flops  # which imports this file

        return flops.counts_of(self).HAS_ATTENTION

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
        """Layers after which the attention pattern repeats."""
        return 1 if self.band_width is None else 2

    @property
    def max_dropout(self) -> float:
        return max(self.embed_dropout, self.attention_dropout, self.residual_dropout)

    @property
    def shown_shape(self) -> str:
        if not self.has_attention:
            return f"{self.n_layers} {self.architecture.upper()} layers, width {self.d_model}"
        return f"{self.n_layers} layers, width {self.d_model}, {self.n_heads} heads of {self.head_size}"

    def with_architecture(self, name: str, **fields) -> "ModelConfig":
        """A copy of another architecture and with other fields; what that architecture does not have is at its default."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        foreign = {field: defaults[field] for field in checks.FOREIGN.get(name, ())}
        return dataclasses.replace(self, architecture=name, **foreign | fields)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    source: str = (
        "corpus"  # corpus (ships with gptjax) | text | jsonl | parquet | arrayrecord | warc | tfds | hf | prepared
    )
    path: str | None = None  # a file, folder or glob, a folder of `gptjax prepare`, or hf's NAME[/CONFIG]; alone: text
    text_field: str = "text"  # jsonl, parquet, tfds, hf: the field that holds the document
    separator: str | None = None  # text: a line that parts two documents; None: one document a file
    tfds_name: str | None = None  # such as "lm1b" or "wikipedia/20230601.en:1.0.0"
    tfds_split: str = "train"
    tfds_dir: str | None = None  # None: TFDS's own default
    hf_split: str = "train"
    mixture: dict[str, str] | None = None  # instead of source: {name: "KIND:PATH" or a folder of `gptjax prepare`}
    weights: dict[str, float] | None = None  # of the mixture's rows, on any scale; None: as many as each source has
    weight_stages: tuple[
        tuple[int, dict[str, float]], ...
    ] = ()  # (tokens, weights): other weights from so many tokens on
    val_fraction: float = 0.1  # of the text, held out
    val_split: str = "tail"  # tail (the last characters) | document (documents chosen by hash)
    tokenizer: str | None = (
        None  # bytes | chars | sentencepiece | gpt2 | hf; None: a prepared folder's, else sentencepiece
    )
    tokenizer_path: str | None = None  # a trained SentencePiece model, gpt2's vocabulary, hf's tokenizer.json
    tokenizer_vocab_size: int = 32000  # entries of a SentencePiece model trained here
    tokenizer_train_bytes: int = 100_000_000  # of text the tokenizer is trained on, at most
    packing: str = "concat"  # concat (documents end to end, cut into rows) | best_fit (whole documents, kept apart)
    mask_documents: bool = False  # concat: packed documents don't see each other, positions restart
    objective: str = "next_token"  # next_token | fim | prefix_lm | masked_lm | span_corruption
    fim_rate: float = 0.5  # fim: the part of documents whose middle moves to the end
    fim_spm_rate: float = 0.5  # fim: the part of those that begin with the suffix
    mask_rate: float = 0.15  # masked_lm, span_corruption: the part of tokens that is hidden
    span_length: float = 3.0  # span_corruption: mean length of a hidden span, in tokens
    cache_dir: str = "~/.cache/gptjax"  # where tokens are kept between runs
    seed: int = 0  # of the order of the rows
    prefetch: int = 2  # batches read ahead
    prefetch_workers: int = 0  # processes that read them; 0: a thread of this one

    @property
    def documents_apart(self) -> bool:
        """Whether the documents packed into a row see only themselves."""
        return self.mask_documents or self.packing == "best_fit"

    @property
    def sees_ahead(self) -> bool:
        """Whether some tokens are seen by earlier ones too: a batch has prefix_BL."""
        return self.objective in ("prefix_lm", "masked_lm", "span_corruption")

    @property
    def writes_on(self) -> bool:
        """Whether a model learns what follows a text, and not only what is missing in it."""
        return self.objective not in ("masked_lm", "span_corruption")

    @property
    def predicts_in_place(self) -> bool:
        """Whether a token is predicted at its own position instead of the one before: a batch has target_BL."""
        return self.objective == "masked_lm"


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    name: str = "adamw"  # adamw | adafactor | lion | muon | sgd
    peak_lr: float = 6e-4
    schedule: str = "cosine"  # constant | cosine | linear | rsqrt | wsd
    warmup_steps: int | None = None
    warmup_tokens: int | None = None  # instead of warmup_steps
    decay_steps: int | None = None  # end of the decay, warmup included; None: the end of the run
    decay_tokens: int | None = None  # instead of decay_steps
    final_lr_fraction: float = 0.1  # of peak_lr, kept after the decay
    cooldown_fraction: float = 0.2  # wsd: the part of the decay span that cools down
    beta1: float = 0.9  # adamw, lion, muon's AdamW part
    beta2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95  # sgd, muon
    muon_lr_ratio: float = 0.1  # muon: learning rate of its AdamW part over peak_lr
    weight_decay: float = 0.1  # decoupled, on matrices; never on biases and gains
    decay_embeddings: bool = False  # decay the embeddings too, a tied head with them
    clip_norm: float | None = 1.0  # of the global gradient
    skip: str = "none"  # updates left out: none | nonfinite (loss or gradient) | outliers (of either, and nonfinite)
    skip_sigma: float = 6.0  # outliers: standard deviations above the mean
    skip_window: int = 128  # outliers: updates that mean and deviation are taken over
    ema_decay: float | None = None  # keeps an exponential moving average of the parameters, in float32
    moment_dtype: str = "float32"  # of the moments between steps: float32 | bfloat16, rounded stochastically
    param_dtype: str = "float32"  # of the parameters between steps, likewise


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices of a slice along each axis, one of which may be -1 and takes what is left; and slices (`dcn_*`)."""

    AXES: typing.ClassVar = ("replica", "stage", "fsdp", "sequence", "tensor")  # the last gets neighbouring chips
    DCN_AXES: typing.ClassVar = ("replica", "fsdp")  # those that slices may lie along

    replica: int = 1  # data parallel, parameters copied
    stage: int = 1  # pipeline parallel: layers sharded
    fsdp: int = -1  # data parallel, parameters sharded
    sequence: int = 1  # context parallel: tokens of a sequence sharded
    tensor: int = 1  # heads, MLP and vocabulary sharded
    dcn_replica: int = -1  # slices along replica; -1: all that dcn_fsdp leaves
    dcn_fsdp: int = 1  # slices along fsdp
    pipeline_microbatches: int | None = None  # parts of a batch that go through the stages; None: one for each stage
    pipeline_repeats: int = 1  # times a microbatch goes round the stages, each holding so many pieces of the model
    offload_optimizer: bool = False  # optimizer state waits in the host's pinned memory between updates
    cpu_devices: int = 1  # JAX devices that a CPU host is split into: with one for each core all work runs on all cores

    def pipeline_parts(self, stages: int) -> int:
        """Parts of a batch that go one by one through a pipeline of so many stages; 1 where that is none."""
        return 1 if stages == 1 else self.pipeline_microbatches or stages


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: int | None = None  # optimizer steps in the run
    tokens: int | None = None  # instead of steps; the last step may overshoot
    batch_size: int = 512  # sequences in a step
    batch_ramp_start: int | None = None  # sequences in the first step; None: no ramp
    batch_ramp_increment: int | None = None  # sequences added at a time
    batch_ramp_tokens: int | None = None  # tokens until the full batch is reached
    microbatches: int = 1  # a step's batch is run in so many parts, gradients summed
    steps_per_call: int = 1  # optimizer steps in one dispatch to the device
    vocab_chunks: int = 1  # the loss holds float32 logits of vocab/vocab_chunks entries at a time
    z_loss: float | None = None  # weight of mean(logsumexp(logits)^2)
    seed: int = 0  # of initialisation and dropout
    max_skips: int = 10  # updates left out in a row (see optim.skip) that end the run, or turn it back
    max_rollbacks: int = 0  # times a run that diverges goes back to a checkpoint and on past the text that did it
    rollback_margin: int = 0  # steps whose text is left out beyond that of the bad ones
    log_every: int = 10  # steps
    log_activations: bool = False  # per-layer activation RMS and largest attention logit
    log_noise_scale: bool = False  # what noise_scale.py makes the critical batch of; needs microbatches >= 2
    profile_steps: tuple[int, int] | None = None  # (first, last) step of a profiler trace
    watchdog_factor: float | None = 20.0  # a step may take so many times the median before the run ends; None: off
    watchdog_seconds: float = 300.0  # but at least so long
    watchdog_other_seconds: float = 3600.0  # compiling, an evaluation batch, saving, resuming may take so long
    tensorboard: bool = True
    wandb_project: str | None = None  # also log to Weights & Biases


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int | None = 1000
    every_minutes: float | None = None
    keep: int = 2  # newest steps kept
    keep_every: int | None = None  # and every step divisible by this, for good
    keep_steps: tuple[int, ...] = ()  # these are saved, and kept for good: where other runs branch off
    on_save_failure: str = "stop"  # stop (exit code 74) | continue, and try again when the next is due


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    every_steps: int | None = 1000  # None: only at the end
    batch_size: int | None = None  # sequences; None: train.batch_size / train.microbatches
    max_tokens: int | None = None  # of the held-out text; None: all of it
    tasks: str | None = None  # of lm-eval, comma-separated: task files, folders of them, names; see gptjax eval --tasks
    tasks_every_steps: int | None = None  # None: only at the end
    tasks_limit: int | None = None  # documents of each task, the first ones; None: all
    tasks_num_fewshot: int | None = None  # examples before each question; None: as each task's file says, or none
    sample_prompt: str | None = None  # text the end-of-run sample starts with; None: end-of-text
    sample_tokens: int = 0  # length of a sample printed at the end of the run


@dataclasses.dataclass(frozen=True)
class Config:
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()

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

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)
