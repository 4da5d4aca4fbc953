"""The LSTM language model of Zaremba et al. 2014, which Kaplan et al. 2020 (Fig. 7) hold their transformers against.

Axes: B batch, L length, D width (of every layer's input, state and output), G = 4 gates in GATES' order, V padded
vocabulary, N layers.

It stands beside gpt.py's GPT, with the same methods for training, evaluation and generation. Unusual:
- The input's share of a layer's gates comes from one matmul over all tokens; only the state's share is in the scan over
  time, whose gradient is written out here: so the recurrent matrix's gradient is one matmul over all tokens, too. Left to
  itself, the scan would add up a [D, 4 D] array at every token.
- The layers' parameters are stacked along a leading axis N and run by one `lax.scan`.
- A row starts from an empty state, and so does each document of a packed one. It knows no positions.
- The state between two tokens is the output in the compute dtype and the cell in float32; gates are float32.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.errors import UserError, choose
from gptjax.models import language_model, layers
from gptjax.models.layers import DTYPES
from gptjax.parallel import sharding

GATES = ("input", "forget", "candidate", "output")
FORGET_BIAS = 1.0  # beside the learned one, which starts at 0: Jozefowicz et al. 2015, section 2.2
REMAT = {  # what the forward pass of a layer keeps for the backward pass; the rest is computed again
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def matrix_std(config) -> float:
    """That of the uniform distribution on [-1/sqrt(D), 1/sqrt(D)], from which LSTMs' matrices are drawn by custom.

    The embedding has 1, also where it is the head. Tried: 0.02, as a GPT's, which normalises it; 2 layers of width 64 were
    then at 3.06 nats after 400 steps on the corpus's characters, where 1 gave 1.97.
    """
    return (3 * config.d_model) ** -0.5


class Layer(nnx.Module):
    """One LSTM layer, without peepholes or a projection."""

    def __init__(self, config, key):
        key_input, key_recurrent = jax.random.split(key)
        D, G, axes = config.d_model, len(GATES), ("embed", "gate", "cells")
        std = matrix_std(config)
        self.config = config
        self.input = layers.Linear(key_input, (D,), (G, D), axes, std, config.bias, side_by_side="gate")
        self.recurrent = layers.Linear(key_recurrent, (D,), (G, D), axes, std, bias=False, side_by_side="gate")

    def __call__(self, x_BLD, state, keep_BL=None):
        """(outputs [B, L, D], state after the last token). state: (output [B, D], cell [B, D]) before the first.

        keep_BL: False at tokens before which the state is emptied.
        """
        x_BLD = sharding.constrain(x_BLD, "batch", None, "width")
        gate_BLGD = sharding.constrain(self.input(x_BLD), "batch", None, "gate", "cells")
        weight_DGD = self.recurrent.weight[...].astype(x_BLD.dtype)
        # Gathered here, outside of the scan; XLA:TPU moves that of a small model into it, whatever is said.
        weight_DGD = sharding.constrain(weight_DGD, "width", "gate", "cells")
        h_BD, c_BD = state
        h_BLD, c_BD = recur(gate_BLGD, weight_DGD, h_BD.astype(x_BLD.dtype), c_BD, keep_BL)
        return sharding.constrain(h_BLD, "batch", None, "width"), (h_BLD[:, -1], c_BD)


@jax.custom_vjp
def recur(gate_BLGD, weight_DGD, h_BD, c_BD, keep_BL):
    """(outputs [B, L, D], the last cell [B, D]) of a layer whose gates, but for the state's share, are gate_BLGD.

    keep_BL: None: the state is never emptied. Tried: unrolling the scan 4- and 16-fold, which gained nothing on a CPU.
    """

    def step(state, inputs):
        h_BD, c_BD, _ = _step(weight_DGD, *state, *inputs)
        return (h_BD, c_BD), h_BD

    (_, c_BD), h_LBD = jax.lax.scan(step, (h_BD, c_BD), _by_time((gate_BLGD, keep_BL)))
    return _by_time(h_LBD), c_BD


def _step(weight_DGD, h_BD, c_BD, gate_BGD, keep_B):
    """(output, cell, activated gates) at one token."""
    if keep_B is not None:
        h_BD, c_BD = (jnp.where(keep_B[:, None], a, 0) for a in (h_BD, c_BD))
    recurrent_BGD = jnp.einsum("bd,dge->bge", h_BD, weight_DGD, preferred_element_type=jnp.float32)
    gate_BGD = gate_BGD.astype(jnp.float32) + recurrent_BGD
    i, o = jax.nn.sigmoid(gate_BGD[:, 0]), jax.nn.sigmoid(gate_BGD[:, 3])
    f, g = jax.nn.sigmoid(gate_BGD[:, 1] + FORGET_BIAS), jnp.tanh(gate_BGD[:, 2])
    c_BD = sharding.constrain(f * c_BD + i * g, "batch", "cells")
    h_BD = sharding.constrain((o * jnp.tanh(c_BD)).astype(h_BD.dtype), "batch", "width")
    return h_BD, c_BD, jnp.stack([i, f, g, o], axis=1).astype(h_BD.dtype)


def _by_time(tree):
    """[B, L, ...] -> [L, B, ...], and back."""
    return jax.tree.map(lambda a: a.swapaxes(0, 1), tree)


def _recur_forward(gate_BLGD, weight_DGD, h_BD, c_BD, keep_BL):
    def step(state, inputs):
        h_BD, c_BD, gate_BGD = _step(weight_DGD, *state, *inputs)
        return (h_BD, c_BD), (h_BD, c_BD, gate_BGD)

    inputs = _by_time((gate_BLGD, keep_BL))
    (_, last_BD), (h_LBD, c_LBD, gate_LBGD) = jax.lax.scan(step, (h_BD, c_BD), inputs)
    h_BLD = _by_time(h_LBD)
    return (h_BLD, last_BD), (weight_DGD, h_BD, c_BD, keep_BL, h_BLD, c_LBD, gate_LBGD)


def _recur_backward(saved, cotangents):
    weight_DGD, h_BD, c_BD, keep_BL, h_BLD, c_LBD, gate_LBGD = saved
    before_BLD = jnp.concatenate([h_BD[:, None], h_BLD[:, :-1]], axis=1)
    before_LBD = jnp.concatenate([c_BD[None], c_LBD[:-1]])
    if keep_BL is not None:
        before_BLD = jnp.where(keep_BL[..., None], before_BLD, 0)
        before_LBD = jnp.where(keep_BL.T[..., None], before_LBD, 0)

    def step(d_state, inputs):
        gate_BGD, c_BD, before_BD, d_out_BD, keep_B = inputs
        d_h_BD, d_c_BD = d_state
        d_h_BD = d_h_BD + d_out_BD.astype(jnp.float32)
        i, f, g, o = (gate_BGD[:, n].astype(jnp.float32) for n in range(len(GATES)))
        tanh_BD = jnp.tanh(c_BD)
        d_c_BD = d_c_BD + d_h_BD * o * (1 - tanh_BD**2)
        d_input, d_forget = d_c_BD * g * i * (1 - i), d_c_BD * before_BD * f * (1 - f)
        d_candidate, d_output = d_c_BD * i * (1 - g**2), d_h_BD * tanh_BD * o * (1 - o)
        d_gate_BGD = jnp.stack([d_input, d_forget, d_candidate, d_output], axis=1).astype(gate_BGD.dtype)
        d_h_BD = jnp.einsum("bge,dge->bd", d_gate_BGD, weight_DGD, preferred_element_type=jnp.float32)
        d_c_BD = sharding.constrain(d_c_BD * f, "batch", "cells")
        if keep_B is not None:
            d_h_BD, d_c_BD = (jnp.where(keep_B[:, None], a, 0) for a in (d_h_BD, d_c_BD))
        return (sharding.constrain(d_h_BD, "batch", "width"), d_c_BD), d_gate_BGD

    d_out_BLD, d_last_BD = cotangents
    inputs = (gate_LBGD, c_LBD, before_LBD, *_by_time((d_out_BLD, keep_BL)))
    start = (jnp.zeros(h_BD.shape, jnp.float32), d_last_BD)
    (d_h_BD, d_c_BD), d_gate_LBGD = jax.lax.scan(step, start, inputs, reverse=True)
    d_gate_BLGD = _by_time(d_gate_LBGD)
    return d_gate_BLGD, _outer(before_BLD, d_gate_BLGD), d_h_BD.astype(h_BD.dtype), d_c_BD, None


def _outer(h_BLD, d_gate_BLGD):
    """[D, G, D], summed over all tokens in one flat matmul where the mesh lets them be flattened: see layers.flat_linear."""
    if sharding.length_is_split():
        return jnp.einsum("bld,blge->dge", h_BLD, d_gate_BLGD)
    flat = (a.reshape(-1, *a.shape[2:]) for a in (h_BLD, d_gate_BLGD))
    return jnp.einsum("nd,nge->dge", *flat)


recur.defvjp(_recur_forward, _recur_backward)


class LSTM(language_model.LanguageModel):
    """A language model over token ids. config: ModelConfig with vocab_size set; key: of the initialisation."""

    def __init__(self, config, key, kernel: str = "none"):
        key_token, key_blocks, key_head = jax.random.split(key, 3)
        shape, axes = (config.padded_vocab_size, config.d_model), ("vocab", "embed")
        choose(DTYPES, config.dtype, "model.dtype")
        choose(REMAT, config.remat, "model.remat")
        self.config, self.kernel = config, kernel
        self.token_embedding = nnx.Param(layers.normal(key_token, shape, 1.0), axes=axes, kind="embedding")
        self.blocks = nnx.vmap(functools.partial(Layer, config))(jax.random.split(key_blocks, config.n_layers))
        if config.tied_head:
            self.head = None
        else:
            self.head = nnx.Param(layers.normal(key_head, shape, matrix_std(config)), axes=axes, kind="matrix")

    def embed(self, token_BL, key=None, noise_BLD=None):
        dtype = DTYPES[self.config.dtype]
        x_BLD = sharding.constrain(self.token_embedding[...].astype(dtype), "vocab", "width")[token_BL]
        x_BLD = x_BLD if noise_BLD is None else x_BLD + noise_BLD.astype(dtype)
        x_BLD = layers.dropout(x_BLD, self.config.embed_dropout, key)
        return sharding.constrain(x_BLD, "batch", None, "width")

    def activations(
        self,
        token_BL,
        *,
        segment_BL=None,
        position_BL=None,
        prefix_BL=None,
        noise_BLD=None,
        key=None,
        log_activations: bool = False,
        schedule=None,
    ):
        """Final activations [B, L, D], the head's input, and a dict of per-layer numbers [N] if asked for.

        segment_BL: the document of each token, before whose first the state is emptied. position_BL changes nothing.
        noise_BLD: added to the embeddings.
        Dropout is on exactly when a key is given: at the first layer's input and every layer's output, never between
        two tokens (Zaremba et al. 2014, section 3.2).
        """
        config = self.config
        assert prefix_BL is None and schedule is None  # config.checks and meshes refuse configs that lead here
        if token_BL.shape[1] > config.context_length:
            raise UserError(f"{token_BL.shape[1]} tokens are more than model.context_length={config.context_length}.")
        keep_BL = None
        if segment_BL is not None:
            keep_BL = jnp.pad(segment_BL[:, 1:] == segment_BL[:, :-1], ((0, 0), (1, 0)))
        key_embed, key_layers = (None, None) if key is None else jax.random.split(key)

        def layer(x_BLD, block, key):
            empty = jnp.zeros((x_BLD.shape[0], config.d_model), jnp.float32)
            x_BLD = block(x_BLD, (empty, empty), keep_BL)[0]
            rms = jnp.sqrt(jnp.mean(jnp.square(x_BLD.astype(jnp.float32)))) if log_activations else None
            return layers.dropout(x_BLD, config.residual_dropout, key), {"activation_rms": rms}

        keys_N = None if key is None else jax.random.split(key_layers, config.n_layers)
        x_BLD, numbers = self._scan(layer, self.embed(token_BL, key_embed, noise_BLD), keys_N)
        return x_BLD, {name: value for name, value in numbers.items() if value is not None}

    def _scan(self, layer, x, extra_N):
        """Runs layer(x, block, extra) -> (x, y) over the stacked layers; returns x and the y's stacked [N]."""

        def step(x, stacked):
            return layer(x, *stacked)

        if self.config.remat != "none":
            step = jax.checkpoint(step, policy=REMAT[self.config.remat], prevent_cse=False)
        return jax.lax.scan(step, x, (self.blocks, extra_N), unroll=min(self.config.scan_unroll, self.config.n_layers))

    def empty_cache(self, batch: int, length: int, dtype=None, apart: bool = False):
        """The state before any token, whatever the length: outputs in a dtype (None: that of the matmuls) and float32
        cells, each [N, B, D].

        apart: of each layer instead, each [B, D], for `extend` with layers taken apart.
        """
        N, dtype = self.config.n_layers, dtype or DTYPES[self.config.dtype]
        pair = lambda *shape: (jnp.zeros(shape, dtype), jnp.zeros(shape, jnp.float32))  # noqa: E731
        shape = (batch, self.config.d_model)
        return tuple(pair(*shape) for _ in range(N)) if apart else pair(N, *shape)

    def extend(self, token_BL, cache, start, pad_B=None, layers=None):
        """Final activations [B, L, D] of tokens at places start, start+1, ..., and the state after them.

        start: one place for all rows, or one for each, [B].
        pad_B: how many places at the start of each row are padding, after which the state is emptied.
        layers: of `apart`, with a cache that is apart too.
        """
        place_BL = jnp.asarray(start)[..., None] + jnp.arange(token_BL.shape[1])
        keep_BL = None if pad_B is None else place_BL != pad_B[:, None]

        def layer(x_BLD, block, state):
            x_BLD, (h_BD, c_BD) = block(x_BLD, state, keep_BL)
            return x_BLD, (h_BD.astype(state[0].dtype), c_BD)

        x_BLD = self.embed(token_BL)
        if layers is None:
            return self._scan(layer, x_BLD, cache)
        states = []
        for block, state in zip(layers, cache):
            x_BLD, state = layer(x_BLD, block, state)
            states.append(state)
        return x_BLD, tuple(states)

    @staticmethod
    def lay_out(cache):
        """The cache, laid out on the mesh in context by rows and cells."""

        def pair(h, c):
            layers = (None,) * (h.ndim - 2)
            return sharding.constrain(h, *layers, "batch", "width"), sharding.constrain(c, *layers, "batch", "cells")

        return tuple(pair(*state) for state in cache) if isinstance(cache[0], tuple) else pair(*cache)

    @staticmethod
    def put_row(cache, one_row, row, pad):
        """The cache with the state of a single row, which its padding has no part in, as that of row `row`."""

        def put(into, new):
            return jax.lax.dynamic_update_slice_in_dim(into, new, row, axis=into.ndim - 2)

        return jax.tree.map(put, cache, one_row)

    @staticmethod
    def take_rows(cache, order_B):
        """The cache with its rows in this order; one may come twice."""
        return jax.tree.map(lambda a: jnp.take(a, order_B, axis=a.ndim - 2), cache)
