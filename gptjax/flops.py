"""Parameters, FLOPs and activation bytes, counted from the config alone: no JAX, nothing allocated.

Papers disagree about what N is and which attention FLOPs exist, and a scaling fit changes its exponent with the
answer. So every convention has a name here and a run records them all. Counts use the true vocabulary: the
padding that sharding adds is neither a parameter nor useful work.

A = n_heads * head_dim, T = context_length. A multiply-add is two FLOPs; backward is twice forward.
"""

import dataclasses
import typing

from gptjax.config import Config, ModelConfig
from gptjax.errors import UserError, choose

DTYPE_BYTES = {"bfloat16": 2, "float32": 4}


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Entries of the model's parameters by what they do, all layers together."""

    token_embedding: int
    position_embedding: int
    head: int  # 0 when the head is the token embedding
    matrices: int  # attention and MLP
    vectors: int  # biases and norms

    @property
    def total(self) -> int:
        return self.token_embedding + self.position_embedding + self.head + self.non_embedding

    @property
    def non_embedding(self) -> int:
        """Without token, position and output tables, so that tying the head changes nothing (Kaplan et al. 2020)."""
        return self.matrices + self.vectors

    @property
    def matmul(self) -> int:
        """Entries that multiply an activation: the layers' matrices and the head, which is one even when tied."""
        return self.matrices + self.token_embedding


def parameters(model: ModelConfig) -> Parameters:
    """Exact parameter counts. Raises UserError while the vocabulary size is unknown."""
    if model.vocab_size is None:
        raise UserError("model.vocab_size=None is the tokenizer's; to count without one, set it to a number.")
    matrices, vectors = _layer_parameters(model)
    table = model.vocab_size * model.d_model
    return Parameters(
        token_embedding=table,
        position_embedding=model.context_length * model.d_model if model.position == "learned" else 0,
        head=0 if model.tied_head else table,
        matrices=model.n_layers * matrices,
        vectors=model.n_layers * vectors + (_norm_parameters(model) if model.final_norm else 0),
    )


def parameter_counts(model: ModelConfig) -> dict[str, int]:
    """The counts under each convention by name, as reports print them."""
    counts = parameters(model)
    return {"total": counts.total, "non_embedding": counts.non_embedding, "matmul": counts.matmul}


def _layer_parameters(model: ModelConfig) -> tuple[int, int]:
    """(matrices, vectors) of one layer."""
    width, mlp = model.d_model, model.ff_size
    q, kv = model.n_heads * model.head_size, model.kv_heads * model.head_size
    up = _up_projections(model) * mlp
    matrices = width * (q + 2 * kv) + q * width + width * up + mlp * width
    biases = (q + 2 * kv) + width + up + width if model.bias else 0
    qk_gains = 2 * model.head_size if model.qk_norm else 0
    return matrices, biases + qk_gains + 2 * _norm_parameters(model)


def _up_projections(model: ModelConfig) -> int:
    return 2 if model.mlp == "swiglu" else 1


def _norm_parameters(model: ModelConfig) -> int:
    return model.d_model * (2 if model.norm == "layernorm" and model.bias else 1)


def visible_pairs(length: int, band_width: int | None = None) -> int:
    """(query, key) pairs of a causal sequence whose tokens see at most band_width tokens, themselves included."""
    band = min(band_width or length, length)
    return band * (band + 1) // 2 + (length - band) * band


def _dense_and_banded(model: ModelConfig) -> tuple[int, int]:
    banded = 0 if model.band_width is None else model.n_layers // 2
    return model.n_layers - banded, banded


def attention_pairs(model: ModelConfig) -> int:
    """Visible (query, key) pairs of one sequence, summed over the layers."""
    dense, banded = _dense_and_banded(model)
    length = model.context_length
    return dense * visible_pairs(length) + banded * visible_pairs(length, model.band_width)


def forward_flops_per_sequence(model: ModelConfig) -> int:
    """FLOPs of every matmul of one full sequence: matrices, head, and scores and values over visible pairs.

    Left out: embedding look-ups, norms, softmax, dropout, rotary embedding, everything elementwise. Document
    masks are not known here, so a masked run does less attention than this.
    """
    attention = 4 * model.n_heads * model.head_size * attention_pairs(model)
    return 2 * parameters(model).matmul * model.context_length + attention


def train_flops_per_sequence(model: ModelConfig) -> int:
    """Forward and backward. Recomputation (remat) is not counted: it is no progress."""
    return 3 * forward_flops_per_sequence(model)


def recomputed_flops_per_sequence(config: Config) -> int:
    """FLOPs of matmuls that a step runs again for one sequence: what remat drops, and a chunked loss its logits.

    The last linear map of a pre-norm layer is not run again, since nothing needs its output. Attention counts once;
    a flash kernel that recomputes scores in its own backward pass does more.
    """
    model = config.model
    length, width = model.context_length, model.d_model
    attention = 4 * model.n_heads * model.head_size * attention_pairs(model)
    matrices = _layer_parameters(model)[0] - (model.ff_size * width if model.norm_position == "pre" else 0)
    layers = 2 * model.n_layers * matrices * length
    qkv = 2 * model.n_layers * width * (model.n_heads + 2 * model.kv_heads) * model.head_size * length
    recomputed = {
        "none": 0,
        "dots": attention,
        "attention": layers - qkv,
        "full": layers + attention,
        "offload": layers + attention,
    }
    again = choose(recomputed, model.remat, "model.remat")
    head = 2 * parameters(model).token_embedding * length if config.train.vocab_chunks > 1 else 0
    return again + head


def decode_flops(model: ModelConfig, n_visible: int) -> int:
    """Forward FLOPs of one token generated from a cache, when it sees n_visible tokens, itself included."""
    dense, banded = _dense_and_banded(model)
    keys = dense * n_visible + banded * min(n_visible, model.band_width or n_visible)
    return 2 * parameters(model).matmul + 4 * model.n_heads * model.head_size * keys


def flops_per_token(model: ModelConfig) -> dict[str, float]:
    """FLOPs of one trained token under each convention.

    6n              N is the total, embeddings included (Kaplan et al. 2020 eq. 2.2 leave them out;
                    Chowdhery et al. 2022, PaLM, appendix B, and Hoffmann et al. 2022 keep them)
    6n_attn_full    + 12 L A T, as if every token saw all T (PaLM, appendix B: what published MFU means);
                    a banded layer counts its band instead of T
    6n_attn_causal  + 12 A times the keys a token sees on average, (T+1)/2 in a dense layer
    exact           3 * forward_flops_per_sequence / T
    """
    dense, banded = _dense_and_banded(model)
    length, heads = model.context_length, model.n_heads * model.head_size
    six_n = 6 * parameters(model).total
    all_keys = dense * length + banded * min(model.band_width or length, length)
    return {
        "6n": float(six_n),
        "6n_attn_full": float(six_n + 12 * heads * all_keys),
        "6n_attn_causal": six_n + 12 * heads * attention_pairs(model) / length,
        "exact": train_flops_per_sequence(model) / length,
    }


def train_flops(config: Config) -> int:
    """Exact FLOPs (see `forward_flops_per_sequence`) of all the tokens of a run, the last step whole."""
    from gptjax.schedule import run_tokens  # imports JAX, which counting must not need

    return run_tokens(config) // config.model.context_length * train_flops_per_sequence(config.model)


def mfu(tokens_per_second: float, flops_per_token: float, peak_flops_per_second: float) -> float:
    """Model FLOPs utilisation, a fraction: useful FLOPs over what the devices could do (PaLM, appendix B)."""
    return tokens_per_second * flops_per_token / peak_flops_per_second


def activation_bytes(config: Config, mesh_sizes: typing.Mapping[str, int]) -> int:
    """Estimated bytes that one device holds for the backward pass of one microbatch.

    mesh_sizes: devices along every mesh axis. Tokens on the device times (what its layers keep + what is recomputed at
    a time + norm and logits at the top), see `kept_bytes`. Left out: gradients in flight, gathered parameters, what a
    pipeline holds while it fills, XLA's own temporaries.
    """
    model, train = config.model, config.train
    tensor, n_layers = mesh_sizes["tensor"], model.n_layers // mesh_sizes["stage"]
    rows = -(-train.batch_size // (train.microbatches * mesh_sizes["replica"] * mesh_sizes["fsdp"]))
    tokens = rows * -(-model.context_length // mesh_sizes["sequence"])
    layers = n_layers * kept_bytes(model, model.remat, tensor)
    if model.remat != "none":  # a period of layers is recomputed at a time, from its input
        inputs = n_layers // model.layer_period * DTYPE_BYTES[model.dtype] * model.d_model // tensor
        inputs *= model.remat != "offload"  # which are on the host
        layers += inputs + model.layer_period * kept_bytes(model, "none", tensor)
    return tokens * (layers + _top_bytes(config, tensor))


def kept_bytes(model: ModelConfig, remat: str, tensor: int = 1) -> int:
    """Bytes per token that one layer keeps for the backward pass, beside its input where that is recomputed from.

    Counted as by Korthikanti et al. 2022, eq. 1 and 2: the inputs of matmuls, norms and activations, and dropout
    masks; not their 5 a s of attention probabilities, which every kernel here recomputes. Of `tensor` devices each
    has its heads and MLP entries, and its tokens of the residual stream; the inputs of its matmuls it has whole.
    """
    itemsize, width = choose(DTYPE_BYTES, model.dtype, "model.dtype"), model.d_model
    heads, kv_heads = model.n_heads // tensor, model.kv_heads // tensor
    q, qkv = heads * model.head_size, (heads + 2 * kv_heads) * model.head_size
    mlp = model.ff_size // tensor
    up = _up_projections(model) * mlp

    residual = width // tensor
    qk_norm = (heads + kv_heads) * model.head_size if model.qk_norm else 0  # before and after
    last = residual if model.norm_position == "post" else 0  # pre-norm only adds the MLP's output: nothing to keep
    masks = 2 * residual if model.residual_dropout else 0  # a byte an entry
    scores = heads * 4  # a float32 log-sum-exp for each query, in every kernel
    kept = {
        "none": itemsize * (2 * width + 2 * residual + qkv + qk_norm + q + up + mlp) + masks + scores,
        "dots": itemsize * (qkv + residual + up + last),  # outputs of linear maps
        "attention": itemsize * (qkv + q) + scores,  # q, k, v and what the kernel keeps; the MLP is computed again
        "full": 0,
        "offload": 0,
    }
    return choose(kept, remat, "model.remat")


def _top_bytes(config: Config, tensor: int) -> int:
    """Bytes per token outside the layers: last norm, embedding mask, a chunk of float32 logits and its gradient."""
    model = config.model
    norm = DTYPE_BYTES[model.dtype] * model.d_model * (2 if model.final_norm else 1)
    mask = model.d_model if model.embed_dropout else 0
    return norm + mask + 2 * 4 * -(-model.padded_vocab_size // (config.train.vocab_chunks * tensor))
