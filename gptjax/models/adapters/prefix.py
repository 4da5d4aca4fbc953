"""Trained keys and values before every sequence: prefix tuning and prompt tuning.

    prefix    keys and values of every layer are parameters: Li and Liang 2021, section 4
    prompt    vectors that stand before the tokens' embeddings are: Lester et al. 2021, section 2; what later tokens see of
              them are their keys and values, which are computed once for all rows

Every token sees all of them, also where packed documents don't see each other or a layer sees a band only. With `shifted` the
tokens' positions count on behind them, as PEFT has it; without, they are as in training before. Unlike other adapters these
change a model from the start, since no key can be unseen.

Axes: as in gpt.py; P is the length of the prefix here.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.models import attention, layers
from gptjax.models.adapters.adapter import Adapter, at_least_one
from gptjax.models.layers import DTYPES


@dataclasses.dataclass(frozen=True)
class Prefix(Adapter):
    """length: of the prefix, in tokens; shifted: whether positions count on behind it."""

    length: int = 20
    shifted: bool = False

    def check(self, model) -> None:
        at_least_one(self, "length")

    def attach(self, block, model, key) -> None:
        pass

    def attach_outside(self, gpt, model, key) -> None:
        gpt.adapter = nnx.data(KeysAndValues(self, model, key))  # None until now, which is no data

    def layer_parameters(self, model):
        return 0, 2 * self.length * model.kv_heads * model.head_size

    @property
    def prefix_length(self) -> int:
        return self.length

    @property
    def position_shift(self) -> int:
        return self.length if self.shifted else 0


@dataclasses.dataclass(frozen=True)
class Prompt(Prefix):
    def attach_outside(self, gpt, model, key) -> None:
        gpt.adapter = nnx.data(Vectors(self, model, key))

    def layer_parameters(self, model):
        return 0, 0

    def outer_parameters(self, model) -> int:
        return self.length * model.d_model


class KeysAndValues(nnx.Module):
    def __init__(self, spec: Prefix, config, key):
        self.length, self.shift = spec.length, spec.position_shift
        shape = (config.n_layers, spec.length, config.kv_heads, config.head_size)
        axes = ("layers", "position", "heads", "head_dim")
        for name, one in zip(("keys", "values"), jax.random.split(key)):
            setattr(self, name, nnx.Param(layers.normal(one, shape, config.init_std), axes=axes, kind="embedding"))

    def ahead(self, gpt):
        """(keys, values) [N, P, G, K] that every token sees."""
        return tuple(part[...].astype(DTYPES[gpt.config.dtype]) for part in (self.keys, self.values))


class Vectors(nnx.Module):
    def __init__(self, spec: Prompt, config, key):
        self.length, self.shift = spec.length, spec.position_shift
        table = layers.normal(key, (spec.length, config.d_model), config.init_std)
        self.prompt = nnx.Param(table, axes=("position", "embed"), kind="embedding")

    def ahead(self, gpt):
        """(keys, values) [N, P, G, K] of the vectors, which see themselves and earlier ones."""
        place_1P = jnp.arange(self.length)[None]
        x_1PD = gpt.embed(jnp.zeros_like(place_1P), place_1P, None, self.prompt[...][None], place_1P)

        def layer(x_1PD, block, kind, _):
            def attend(q_1PHK, k_1PGK, v_1PGK):
                out_1PHK = attention.cached_attention(q_1PHK, k_1PGK, v_1PGK, 0, window=kind.window)
                return out_1PHK, (k_1PGK[0], v_1PGK[0])

            return block(x_1PD, attend, place_1P if kind.rotary else None)

        return gpt.scan(layer, x_1PD, gpt.blocks, None)[1]
