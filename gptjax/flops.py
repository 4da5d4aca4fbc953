"""Parameters, FLOPs and activation bytes, counted from the config alone: no JAX, nothing allocated.

Papers disagree about what N is and which attention FLOPs exist, and a scaling fit changes its exponent with the
answer. So every convention has a name here and a run records them all. Counts use the true vocabulary: the
padding that sharding adds is neither a parameter nor useful work. What a layer has and costs is counted in one module for
each architecture, named in its entry of the catalogue: its functions are those of gpt_counts.

A = n_heads * head_dim, T = context_length. A multiply-add is two FLOPs; backward is twice forward.
"""

import dataclasses
import typing

from gptjax import schedule
from gptjax.config import catalogue
from gptjax.config.fields import Config, ModelConfig
from gptjax.errors import UserError, choose, imported

DTYPE_BYTES = {"bfloat16": 2, "float32": 4}


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Entries of the model's parameters by what they do, all layers together."""

    token_embedding: int
    position_embedding: int
    head: int  # 0 when the head is the token embedding
    matrices: int  # of the layers
    vectors: int  # biases and norms
    task_head: int = 0  # matrix and bias of a head beside that of the language model

    @property
    def total(self) -> int:
        return self.token_embedding + self.position_embedding + self.head + self.non_embedding + self.task_head

    @property
    def non_embedding(self) -> int:
        """Without token, position and output tables, so that tying the head changes nothing (Kaplan et al. 2020)."""
        return self.matrices + self.vectors

    @property
    def matmul(self) -> int:
        """Entries that multiply an activation: the layers' matrices and the head, which is one even when tied."""
        return self.matrices + self.token_embedding


def parameters(model: ModelConfig, relative_positions: bool = False) -> Parameters:
    """Exact parameter counts. Raises UserError while the vocabulary size is unknown.

    relative_positions: as if the model had Transformer-XL's instead of its own, as Chinchilla's and Gopher's do.
    """
    if model.vocab_size is None:
        raise UserError("model.vocab_size=None is the tokenizer's; to count without one, set it to a number.")
    matrices, vectors = counts_of(model).layer_parameters(model, relative_positions)
    positions, outer = counts_of(model).outer_parameters(model, relative_positions)
    table = model.vocab_size * model.d_model
    return Parameters(
        token_embedding=table,
        position_embedding=positions,
        head=0 if model.tied_head else table,
        matrices=model.n_layers * matrices,
        vectors=model.n_layers * vectors + outer,
        task_head=0
        if model.task_head is None
        else imported("gptjax.config.task_heads:parameters", "model.task_head")(model),
    )


def counts_of(model: ModelConfig):
    """The module that counts a model of this architecture. Raises UserError for an unknown one."""
    return catalogue.counts(model.architecture)


def check_counts(model: ModelConfig, entries: int) -> None:
    """Raises UserError where a model has so many parameters, padding included, and its counts say another number, as of
    a copied model with another matrix: every number of FLOPs and every fit over sizes would be wrong, and nobody told."""
    padding = (model.padded_vocab_size - model.vocab_size) * model.d_model * (1 if model.tied_head else 2)
    counted = parameters(model).total
    if model.critic is not None:
        entries -= critic_parameters(model)
    if entries - padding != counted:
        raise UserError(
            f"model.architecture={model.architecture!r} has {entries - padding:,} parameters, but"
            f" {counts_of(model).__name__} counts {counted:,}; name counts of its own in its entry of"
            " catalogue.ARCHITECTURES."
        )


def critic_parameters(model: ModelConfig) -> int:
    """Entries of a model's critic, which are none of the model's own; padding of its vocabulary included."""
    trunk = catalogue.critic(model.critic).trunk(model)
    if trunk is None:
        return model.d_model + 1
    return parameters(dataclasses.replace(trunk, vocab_size=trunk.padded_vocab_size)).total + trunk.d_model + 1


def parameter_counts(model: ModelConfig) -> dict[str, int]:
    """The counts under each convention by name, as reports print them."""
    counts = parameters(model)
    return {"total": counts.total, "non_embedding": counts.non_embedding, "matmul": counts.matmul}


def forward_flops_per_sequence(model: ModelConfig) -> int:
    """FLOPs of every matmul of one full sequence: matrices, head, and scores and values over visible pairs.

    Left out: embedding look-ups, norms, softmax, dropout, rotary embedding, everything elementwise. Document
    masks are not known here, so a masked run does less attention than this.
    """
    return 2 * parameters(model).matmul * model.context_length + counts_of(model).mixing_flops(model)


def train_flops_per_sequence(model: ModelConfig) -> int:
    """Forward and backward. Recomputation (remat) is not counted: it is no progress.

    With an adapter backward is once forward, mixing once more (it has two operands), and the adapter's own gradients.
    """
    if model.adapter is None:
        return 3 * forward_flops_per_sequence(model)
    trained = model.n_layers * catalogue.adapter(model.adapter).layer_parameters(model)[0]
    mixing = counts_of(model).mixing_flops(model)
    return 2 * forward_flops_per_sequence(model) + mixing + 2 * trained * model.context_length


def recomputed_flops_per_sequence(config: Config) -> int:
    """FLOPs of matmuls that a step runs again for one sequence: what remat drops, and a chunked loss its logits."""
    model = config.model
    head = 2 * parameters(model).token_embedding * model.context_length if config.train.vocab_chunks > 1 else 0
    return counts_of(model).recomputed_flops(model) + head


def flops_per_token(model: ModelConfig) -> dict[str, float]:
    """FLOPs of one trained token under each convention.

    6n              N is the total, embeddings included (Kaplan et al. 2020 eq. 2.2 leave them out;
                    Chowdhery et al. 2022, PaLM, appendix B, and Hoffmann et al. 2022 keep them)
    6n_attn_full    + 12 L A T, as if every token saw all T (PaLM, appendix B: what published MFU means);
                    a banded layer counts its band instead of T
    6n_attn_causal  + 12 A times the keys a token sees on average, (T+1)/2 in a dense layer
    exact           3 * forward_flops_per_sequence / T

    Without attention the middle two are the first.
    """
    length, counts = model.context_length, counts_of(model)
    six_n = 6 * parameters(model).total
    return {
        "6n": float(six_n),
        "6n_attn_full": float(six_n + 3 * counts.full_mixing_flops(model)),
        "6n_attn_causal": six_n + 3 * counts.mixing_flops(model) / length,
        "exact": train_flops_per_sequence(model) / length,
    }


def train_flops(config: Config) -> int:
    """Exact FLOPs (see `forward_flops_per_sequence`) of all the tokens of a run, the last step whole."""
    return schedule.run_tokens(config) // config.model.context_length * train_flops_per_sequence(config.model)


def mfu(tokens_per_second: float, flops_per_token: float, peak_flops_per_second: float) -> float:
    """Model FLOPs utilisation, a fraction: useful FLOPs over what the devices could do (PaLM, appendix B)."""
    return tokens_per_second * flops_per_token / peak_flops_per_second


def activation_bytes(config: Config, mesh_sizes: typing.Mapping[str, int]) -> int:
    """Estimated bytes that one device holds for the backward pass of one microbatch.

    mesh_sizes: devices along every mesh axis. Tokens on the device times (what its layers keep + norm at the top + the
    larger of what is recomputed at a time and the logits, which do not live at once), see `kept_bytes`. Left out: gradients
    in flight, gathered parameters, what a pipeline holds while it fills, XLA's own temporaries.
    """
    model, train = config.model, config.train
    tensor, n_layers = mesh_sizes["tensor"], model.n_layers // mesh_sizes["stage"]
    rows = -(-train.batch_size // (train.microbatches * mesh_sizes["replica"] * mesh_sizes["fsdp"]))
    tokens = rows * -(-model.context_length // mesh_sizes["sequence"])
    layers, recomputed = n_layers * kept_bytes(model, model.remat, tensor), 0
    if model.remat != "none":  # a period of layers is recomputed at a time, from its input
        inputs = n_layers // model.layer_period * DTYPE_BYTES[model.dtype] * model.d_model // tensor
        layers += inputs * (model.remat != "offload")  # which are on the host
        recomputed = model.layer_period * kept_bytes(model, "none", tensor)
    return tokens * (layers + _top_bytes(model) + max(recomputed, _logit_bytes(config, tensor)))


def kept_bytes(model: ModelConfig, remat: str, tensor: int = 1) -> int:
    """Bytes per token that one layer keeps for the backward pass, beside its input where that is recomputed from.

    tensor: the devices that a layer is split over; those of one.
    """
    itemsize = choose(DTYPE_BYTES, model.dtype, "model.dtype")
    return counts_of(model).kept_bytes(model, remat, itemsize, tensor)


def _top_bytes(model: ModelConfig) -> int:
    """Bytes per token that are kept outside the layers: last norm, embedding mask."""
    norm = DTYPE_BYTES[model.dtype] * counts_of(model).top_entries(model)
    return norm + (model.d_model if model.embed_dropout else 0)


def _logit_bytes(config: Config, tensor: int) -> int:
    """Bytes per token of a chunk of float32 logits and of its gradient."""
    return 2 * 4 * -(-config.model.padded_vocab_size // (config.train.vocab_chunks * tensor))
