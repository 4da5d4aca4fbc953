"""The parts of a block: linear maps, norms, activations. Named variants stand in tables.

Every parameter states beside its shape its logical axes, which `sharding.RULES` maps to the mesh, and what it is to an
optimizer (roles.py).
A layer computes in the dtype of its input, norms in float32, whatever its parameters are stored in.

Norms and activations are `recomputed`: the backward pass keeps their input alone. Kept by default, their float32
intermediates are more than half of all activation memory, and on a CPU writing them costs 10% of a step.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.parallel import sharding

# No barrier against merging both computations into one: the scan over layers keeps them apart, and a barrier stops
# fusion.
recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}  # of the matmuls
READING_DTYPES = (*DTYPES, "int8")  # that a model is loaded in: int8 is of weights only, see int8.py


def normal(key, shape, std: float):
    return std * jax.random.normal(key, shape, jnp.float32)


def flat_linear(x, weight, bias, n_inputs: int):
    """The linear map as one product of two matrices, [tokens, fan in] @ [fan in, fan out].

    XLA:CPU runs the weight gradient of a matmul with two batch dimensions at 40% of the rate of the flat one. Where
    both batch and length are split over devices they stay two: the partitioner would gather one to flatten them.
    """
    batch, outputs = x.shape[: x.ndim - n_inputs], weight.shape[n_inputs:]
    fan_in, fan_out = math.prod(weight.shape[:n_inputs]), math.prod(outputs)
    x, w = x.reshape(*batch, fan_in), weight.reshape(fan_in, fan_out)
    if not sharding.length_is_split():
        x = x.reshape(-1, fan_in)
    y = (x @ w.astype(x.dtype)).reshape(*batch, fan_out)
    if bias is not None:
        y = y + bias.reshape(fan_out).astype(y.dtype)
    return y.reshape(*batch, *outputs)


def whole_linear(x, weight, bias, n_inputs: int):
    """The linear map with nothing reshaped.

    On TPU, [tokens, heads * 128] and [tokens, heads, 128] lie in other tiles, and every reshape moves all of them: flat,
    a layer of the 1.3B makes five such copies. Naming q, k and v one by one for remat besides gains 0.1% of a step;
    ordering their matrix [D, R + 2, G, K] instead gains nothing.
    """
    dims = tuple(range(x.ndim - n_inputs, x.ndim)), tuple(range(n_inputs))
    y = jax.lax.dot_general(x, weight.astype(x.dtype), (dims, ((), ())))
    return y if bias is None else y + bias.astype(y.dtype)


def by_columns(x, weight_OI):
    """x [..., I] times the transpose of a weight [O, I], as weight @ columns: for a CPU and few rows.

    XLA:CPU reads the weight where it lies, row by row, in three quarters of the time of x @ weight for 2 to 32 rows (768 x
    3,072, float32). Without the barriers it would turn this into x @ weight', and transpose the weight anew for each call.
    """
    columns = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)
    product = jnp.matmul(weight_OI.astype(x.dtype), columns, preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(product).T.reshape(*x.shape[:-1], len(weight_OI))


FEW_ROWS = 4  # that by_rows multiplies one by one: of more, each matrix in floats is as fast
MOST_INPUTS = 4095  # of a product that converts bytes as it reads them: a row in float32 that takes less than 16 KiB


def by_rows(x, weight_OI):
    """x [..., I] times the transpose of a weight [O, I] in int8, in float32: for a CPU and at most FEW_ROWS rows.

    XLA:CPU converts each byte where it multiplies it only in a product of one small row. Else it writes the weight in floats
    before it multiplies, and in a loop all weights before the first step, which the barriers keep it from: GPT-2 small's
    layers take 8 CPU ms a token so, 24 in float32 and 30 the other way (docs/speed.md).
    """
    barrier = jax.lax.optimization_barrier
    row_RI, weight_OI = barrier((x.reshape(-1, x.shape[-1]).astype(jnp.float32), weight_OI))
    n_inputs = weight_OI.shape[1]
    size = -(-n_inputs // -(-n_inputs // MOST_INPUTS))
    pieces = [slice(i, i + size) for i in range(0, n_inputs, size)]
    weights = [weight_OI if len(pieces) == 1 else barrier(weight_OI[:, piece]) for piece in pieces]

    def product(row_1I):
        return sum(barrier(barrier(row_1I[:, i]) @ weight.astype(jnp.float32).T) for i, weight in zip(pieces, weights))

    made_RO = jnp.concatenate([product(row_RI[r : r + 1]) for r in range(len(row_RI))])
    return made_RO.reshape(*x.shape[:-1], len(weight_OI))


@functools.partial(recomputed, static_argnums=4)
def linear_of_bytes(x, weight, scale, bias, n_inputs: int):
    """The linear map of a weight in int8: the product of x and the bytes in the dtype of x, times the scale of each output.

    Under an adapter the backward pass keeps the bytes, and not every layer's in the dtype of x. A product in float32 would be
    twice as many bytes where devices add their parts of it up.
    """
    dims = tuple(range(x.ndim - n_inputs, x.ndim)), tuple(range(n_inputs))
    y = jax.lax.dot_general(x, weight.astype(x.dtype), (dims, ((), ()))).astype(jnp.float32) * scale
    return (y if bias is None else y + bias.astype(jnp.float32)).astype(x.dtype)


LINEAR = {"cpu": flat_linear, "gpu": whole_linear, "tpu": whole_linear}  # the fastest form on each platform


@functools.partial(recomputed, static_argnums=(4, 5))
def linear_of_nf4(x, weight, scale, bias, dim: int, n_inputs: int):
    """The linear map of a weight in four bits, in the dtype of x. The backward pass keeps the bytes and no float of them. dim:
    which the blocks lie along, from the end."""
    from gptjax.models import nf4  # of models with such weights alone

    return LINEAR[sharding.platform()](x, nf4.dequantised(weight, scale, dim).astype(x.dtype), bias, n_inputs)


class Linear(nnx.Module):
    """A linear map from the last dimensions `inputs` to the dimensions `outputs`, both tuples.

    side_by_side: the axis of the outputs along which it holds several matrices, which an optimizer takes one by one.
    """

    def __init__(self, key, inputs, outputs, axes, std: float, bias: bool, side_by_side: str | None = None):
        self.inputs, self.outputs = inputs, outputs
        n_inputs = len(inputs)
        dims = {
            "inputs": tuple(range(n_inputs)),
            "outputs": tuple(dim for dim in range(n_inputs, len(axes)) if axes[dim] != side_by_side),
        }
        self.weight = nnx.Param(normal(key, (*inputs, *outputs), std), axes=axes, kind="matrix", **dims)
        self.scale = None  # of each output, where the weight is in int8; of each block, where it is in nf4
        self.block_dim = None  # which dimension, from the end, the blocks of nf4 lie along
        self.in_columns = False  # whether the weight is [all outputs, all inputs], see by_columns
        self.adapter = None  # an adapters.adapter.Part, which is then called in the place of this map
        if bias:
            self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32), axes=axes[n_inputs:], kind="vector")
        else:
            self.bias = None

    def __call__(self, x):
        return self.part(x, ...)

    def part(self, x, index):
        """The map to the outputs at an index of their second dimension, adapted where it has an adapter; ...: to all."""
        return self.plain(x, index) if self.adapter is None else self.adapter(self, x, index)

    def plain(self, x, index, biased: bool = True):
        """`part` without its adapter."""
        if self.in_columns:
            return self._of_columns(x.reshape(*x.shape[: x.ndim - len(self.inputs)], -1))
        outputs = ... if index is ... else (slice(None), index)
        entries = ... if index is ... else (*[slice(None)] * len(self.inputs), *outputs)
        weight = self.weight[entries]
        bias = None if self.bias is None or not biased else self.bias[outputs]
        if self.block_dim is not None:
            return linear_of_nf4(x, weight, self.scale[entries], bias, self.block_dim, len(self.inputs))
        if self.scale is not None:
            return linear_of_bytes(x, weight, self.scale[outputs], bias, len(self.inputs))
        return LINEAR[sharding.platform()](x, weight, bias, len(self.inputs))

    def _of_columns(self, x):
        """The map of x [..., all inputs] by a weight that was turned."""
        few = math.prod(x.shape[:-1]) <= FEW_ROWS
        y = by_rows(x, self.weight[...]) if self.scale is not None and few else by_columns(x, self.weight[...])
        y = y.reshape(*y.shape[:-1], *self.outputs)
        if self.scale is None:
            y = y.astype(x.dtype)
            return y if self.bias is None else y + self.bias[...].astype(y.dtype)
        y = y * self.scale[...]
        return (y if self.bias is None else y + self.bias[...].astype(jnp.float32)).astype(x.dtype)

    def whole_weight(self):
        """[*inputs, *outputs], of bytes what they stand for."""
        if self.block_dim is not None:
            from gptjax.models import nf4

            return nf4.dequantised(self.weight[...], self.scale[...], self.block_dim)
        return self.weight[...] if self.scale is None else self.weight[...].astype(jnp.float32) * self.scale[...]

    def turn(self) -> None:
        """Holds its weight as `by_columns` and `by_rows` read it, of a map that is only called whole."""
        weight = self.weight[...]
        self.weight = nnx.Param(weight.reshape(math.prod(self.inputs), -1).T, **self.weight.get_metadata())
        self.in_columns = True

    def hold_bytes(self) -> None:
        """Gives it a weight in int8 and scales, all 0, in place of its weight, which may be stacked."""
        weight, n_inputs, n_outputs = self.weight[...], len(self.inputs), len(self.outputs)
        stacked, about = weight.ndim - n_inputs - n_outputs, self.weight.get_metadata()
        self.weight = nnx.Param(jnp.zeros(weight.shape, jnp.int8), **about)
        shape = (*weight.shape[:stacked], *self.outputs)
        scale = nnx.Param(jnp.zeros(shape, jnp.float32), axes=about["axes"][n_inputs:], kind="vector")
        self.scale = nnx.data(scale)  # None until now, which is no data


class LayerNorm(nnx.Module):
    """Ba et al. 2016, over the last dimension, in float32. The shift goes with model.bias."""

    def __init__(self, size: int, config, axis: str = "embed"):
        self.eps = config.norm_eps
        self.gain = nnx.Param(jnp.ones(size, jnp.float32), axes=(axis,), kind="vector")
        self.bias = nnx.Param(jnp.zeros(size, jnp.float32), axes=(axis,), kind="vector") if config.bias else None

    def __call__(self, x):
        return layer_norm(x, self.gain[...], None if self.bias is None else self.bias[...], self.eps)


@functools.partial(recomputed, static_argnums=3)
def layer_norm(x, gain, bias, eps: float):
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    variance = jnp.square(x32 - mean).mean(-1, keepdims=True)
    y = (x32 - mean) * jax.lax.rsqrt(variance + eps) * gain
    return (y if bias is None else y + bias).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Zhang and Sennrich 2019, over the last dimension, in float32."""

    def __init__(self, size: int, config, axis: str = "embed"):
        self.eps = config.norm_eps
        self.gain = nnx.Param(jnp.ones(size, jnp.float32), axes=(axis,), kind="vector")

    def __call__(self, x):
        return rms_norm(x, self.gain[...], self.eps)


@functools.partial(recomputed, static_argnums=2)
def rms_norm(x, gain, eps: float):
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + eps) * gain).astype(x.dtype)


class RMSNormPlusOne(nnx.Module):
    """RMSNorm with a gain of 1 + offset, which weight decay draws to 1 (Gemma Team 2024, in their released code)."""

    def __init__(self, size: int, config, axis: str = "embed"):
        self.eps = config.norm_eps
        self.offset = nnx.Param(jnp.zeros(size, jnp.float32), axes=(axis,), kind="vector")

    def __call__(self, x):
        return rms_norm(x, 1 + self.offset[...].astype(jnp.float32), self.eps)  # a sum that bfloat16 would round


NORMS = {"layernorm": LayerNorm, "rmsnorm": RMSNorm, "rmsnorm_plus_one": RMSNormPlusOne}


@recomputed
def gelu_tanh(x):
    """The tanh form, as in the released code of GPT-1 and GPT-2."""
    return jax.nn.gelu(x, approximate=True)


@recomputed
def gelu(x):
    return jax.nn.gelu(x, approximate=False)


@recomputed
def relu2(x):
    """Squared ReLU, So et al. 2021 (Primer)."""
    return jnp.square(jax.nn.relu(x))


@recomputed
def swiglu(x):
    """Shazeer 2020: x [..., 2, F] holds gate and value."""
    return jax.nn.silu(x[..., 0, :]) * x[..., 1, :]


@recomputed
def geglu(x):
    """Shazeer 2020, with GELU in the tanh form, as Gemma has it: x [..., 2, F] holds gate and value."""
    return jax.nn.gelu(x[..., 0, :], approximate=True) * x[..., 1, :]


# Those that take a gate beside their input, [..., 2, F], stand in gpt_counts.GATED too.
ACTIVATIONS = {"gelu_tanh": gelu_tanh, "gelu": gelu, "relu2": relu2, "swiglu": swiglu, "geglu": geglu}


def dropout(x, rate: float, key):
    """x with entries zeroed at this rate and the rest scaled up; x itself for key=None or rate 0."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
