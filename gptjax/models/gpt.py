"""The GPT: GPT-1's post-norm and GPT-2's pre-norm decoder, GPT-3's alternating dense and banded layers.

Axes: B batch, L length, M cached positions, D width, H query heads, G key/value heads (H = G * R), K head size,
F MLP width, V padded vocabulary, N layers, P layers in a period of the attention pattern.

The blocks' parameters are stacked along a leading axis N and run by one `lax.scan`, so that compile time does not
grow with depth. Modules only hold parameters; calling them is a pure function of parameters and arguments, and
dropout is on exactly when a key is given. The model knows logical axis names, not meshes.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from gptjax.config import catalogue
from gptjax.errors import UserError, choose, make_chosen
from gptjax.models import attention, cache_layout, gpt_counts, language_model, layers, parametrization, rotary
from gptjax.models.layers import DTYPES
from gptjax.parallel import pipeline, sharding

REMAT = {  # what the forward pass keeps for the backward pass; the rest is computed again
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("qkv", attention.KEPT),
    "mlp": jax.checkpoint_policies.save_only_these_names("qkv", attention.KEPT, "mlp"),
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["layer_input"],
        offload_src="device",
        offload_dst=sharding.HOST_MEMORY,
    ),
}

ADAPTER_STREAM = 2  # of a block's key, beside those of attention and MLP


class Attention(nnx.Module):
    """Multi-head or grouped-query self-attention.

    One matrix [D, G, R + 2, K] holds, for each key/value head, its R queries, its key and its value: one matmul
    gives all three, and splitting G over devices keeps every group whole.
    """

    def __init__(self, config, key, out_std: float):
        key_in, key_out = jax.random.split(key)
        D, G, K = config.d_model, config.kv_heads, config.head_size
        R = config.n_heads // G
        self.config = config
        axes, std = ("embed", "heads", "qkv", "head_dim"), parametrization.hidden_std(config)
        self.qkv = layers.Linear(
            key_in, (D,), (G, R + 2, K), axes, std, gpt_counts.has_bias(config, "qkv"), side_by_side="qkv"
        )
        axes = ("heads", "head_dim", "embed")
        self.out = layers.Linear(key_out, (config.n_heads, K), (D,), axes, out_std, gpt_counts.has_bias(config, "out"))
        self.q_norm = layers.RMSNorm(K, config, "head_dim") if config.qk_norm else None
        self.k_norm = layers.RMSNorm(K, config, "head_dim") if config.qk_norm else None
        scaling = config.rope_scaling
        self.rope_scaling = scaling and make_chosen(scaling, rotary.SCALINGS, "model.rope_scaling")

    def __call__(self, x_BLD, attend, position_BL):
        """attend(q_BLHK, k_BLGK, v_BLGK) -> (o_BLHK, extra). Returns the output [B, L, D] and extra.

        position_BL: None in a layer that rotates nothing."""
        config = self.config
        x_BLD = sharding.constrain(x_BLD, "batch", "length", "width")
        q_BLGRK, k_BLGK, v_BLGK = attention.PROJECTIONS[sharding.platform()](self.qkv, x_BLD)
        q_BLHK = q_BLGRK.reshape(*x_BLD.shape[:2], config.n_heads, config.head_size)
        if config.qk_norm:
            q_BLHK, k_BLGK = self.q_norm(q_BLHK), self.k_norm(k_BLGK)
        if config.position == "rope" and position_BL is not None:
            q_BLHK = rotary.rotate(q_BLHK, position_BL, config.rope_theta, self.rope_scaling)
            k_BLGK = rotary.rotate(k_BLGK, position_BL, config.rope_theta, self.rope_scaling)
        q_BLHK = parametrization.scaled(q_BLHK, parametrization.query_multiplier(config))
        o_BLHK, extra = attend(q_BLHK, k_BLGK, v_BLGK)
        return sharding.constrain(self.out(o_BLHK), "batch", "residual", "width"), extra


class MLP(nnx.Module):
    def __init__(self, config, key, out_std: float):
        key_in, key_out = jax.random.split(key)
        D, F = config.d_model, config.ff_size
        has_bias = gpt_counts.has_bias(config, "mlp")
        self.activation = choose(layers.ACTIVATIONS, config.mlp, "model.mlp")
        hidden, axes = (
            ((2, F), ("embed", "gate", "mlp")) if config.mlp in gpt_counts.GATED else ((F,), ("embed", "mlp"))
        )
        std = parametrization.hidden_std(config)
        self.up = layers.Linear(key_in, (D,), hidden, axes, std, has_bias, side_by_side="gate")
        self.down = layers.Linear(key_out, (F,), (D,), ("mlp", "embed"), out_std, has_bias)

    def __call__(self, x_BLD):
        x_BLD = sharding.constrain(x_BLD, "batch", "length", "width")
        hidden_BLF = sharding.constrain(
            self.activation(checkpoint_name(self.up(x_BLD), "mlp")), "batch", "length", "mlp"
        )
        return sharding.constrain(self.down(hidden_BLF), "batch", "residual", "width")


class Block(nnx.Module):
    def __init__(self, config, key):
        key_attention, key_mlp = jax.random.split(key)
        scale = parametrization.residual_init_scale(config)
        norm = choose(layers.NORMS, config.norm, "model.norm")
        self.config = config
        self.attention_norm = norm(config.d_model, config)
        self.attention = Attention(config, key_attention, parametrization.hidden_std(config) * scale)
        self.mlp_norm = norm(config.d_model, config)
        self.mlp = MLP(config, key_mlp, parametrization.hidden_std(config, of_mlp=True) * scale)
        if config.adapter is not None:
            catalogue.adapter(config.adapter).attach(self, config, jax.random.fold_in(key, ADAPTER_STREAM))

    def __call__(self, x_BLD, attend, position_BL, key=None):
        """The next residual stream and what attend returned beside its output."""
        rate = self.config.residual_dropout
        if self.config.adapter is not None and key is not None:
            catalogue.adapter(self.config.adapter).give_keys(self, jax.random.fold_in(key, ADAPTER_STREAM))
        key_attention, key_mlp = (None, None) if key is None else jax.random.split(key)
        if self.config.norm_position == "post":
            a, extra = self.attention(x_BLD, attend, position_BL)
            x_BLD = self.attention_norm(x_BLD + layers.dropout(a, rate, key_attention))
            x_BLD = self.mlp_norm(x_BLD + layers.dropout(self.mlp(x_BLD), rate, key_mlp))
        else:
            part = parametrization.branch_multiplier(self.config)
            a, extra = self.attention(self.attention_norm(x_BLD), attend, position_BL)
            x_BLD = x_BLD + parametrization.scaled(layers.dropout(a, rate, key_attention), part)
            hidden_BLD = layers.dropout(self.mlp(self.mlp_norm(x_BLD)), rate, key_mlp)
            x_BLD = x_BLD + parametrization.scaled(hidden_BLD, part)
        return sharding.constrain(x_BLD, "batch", "residual", "width"), extra


class GPT(language_model.LanguageModel):
    """A language model over token ids. config: ModelConfig with vocab_size set; key: of the initialisation."""

    def __init__(self, config, key, kernel: str = "xla"):
        key_token, key_position, key_blocks, key_head = jax.random.split(key, 4)
        V, D = config.padded_vocab_size, config.d_model
        choose(DTYPES, config.dtype, "model.dtype")
        choose(REMAT, config.remat, "model.remat")
        self.config, self.kernel = config, kernel
        table, axes = layers.normal(key_token, (V, D), config.init_std), ("vocab", "embed")
        self.token_embedding = nnx.Param(table, axes=axes, kind="embedding")
        if config.position == "learned":
            table = layers.normal(key_position, (config.context_length, D), config.position_init_std)
            self.position_embedding = nnx.Param(table, axes=("position", "embed"), kind="embedding")
        else:
            choose({"learned": None, "rope": None}, config.position, "model.position")
            self.position_embedding = None
        self.blocks = nnx.vmap(functools.partial(Block, config))(jax.random.split(key_blocks, config.n_layers))
        self.final_norm = choose(layers.NORMS, config.norm, "model.norm")(D, config) if config.final_norm else None
        if config.tied_head:
            self.head = None
        else:
            self.head = nnx.Param(layers.normal(key_head, (V, D), config.init_std), axes=axes, kind="matrix")
        if config.task_head is not None:
            from gptjax.models import heads

            self.task_head = heads.Head(config, jax.random.fold_in(key, heads.STREAM))
        if config.critic is not None:
            catalogue.critic(config.critic).attach(self, config, key)
        self.adapter = None  # what an adapter has outside the blocks
        if config.adapter is not None:
            catalogue.adapter(config.adapter).attach_outside(self, config, jax.random.fold_in(key, ADAPTER_STREAM))

    @property
    def layer_kinds(self) -> tuple[gpt_counts.LayerKind, ...]:
        """Of the layers of a period. GPT-3: dense first, then banded."""
        return gpt_counts.layer_kinds(self.config)

    def embed(self, token_BL, position_BL, key=None, embedding_BPD=None, place_BP=None, noise_BLD=None):
        """The residual stream before the first layer. embedding_BPD: what stands instead of the embeddings of the tokens at
        these places of each row, such as of an image; a place beyond the row holds none. noise_BLD: added to embeddings."""
        dtype = DTYPES[self.config.dtype]
        # Width first gathered, then rows looked up: the partitioner would otherwise replicate the activations. And every
        # token where its vocabulary is, before the residual stream is split: it would otherwise gather the whole table.
        x_BLD = sharding.constrain(self.token_embedding[...].astype(dtype), "vocab", "width")[token_BL]
        x_BLD = sharding.constrain(x_BLD, "batch", "length", "width")
        if self.config.scale_embedding:
            x_BLD = x_BLD * jnp.asarray(math.sqrt(self.config.d_model), dtype)
        if embedding_BPD is not None:
            row_B1 = jnp.arange(x_BLD.shape[0])[:, None]
            x_BLD = x_BLD.at[row_B1, place_BP].set(embedding_BPD.astype(dtype), mode="drop")
            x_BLD = sharding.constrain(x_BLD, "batch", "length", "width")
        if noise_BLD is not None:
            x_BLD = x_BLD + sharding.constrain(noise_BLD.astype(dtype), "batch", "length", "width")
        if self.position_embedding is not None:
            table = sharding.constrain(self.position_embedding[...].astype(dtype), "position", "width")
            x_BLD = x_BLD + table[position_BL]
        x_BLD = layers.dropout(x_BLD, self.config.embed_dropout, key)
        return sharding.constrain(x_BLD, "batch", "residual", "width")

    def activations(
        self,
        token_BL,
        *,
        segment_BL=None,
        position_BL=None,
        prefix_BL=None,
        embedding_BPD=None,
        place_BP=None,
        noise_BLD=None,
        key=None,
        log_activations: bool = False,
        schedule=None,
    ):
        """Final activations [B, L, D], the head's input, and a dict of per-layer numbers [N] if asked for.

        segment_BL: the document of each token, which sees no other. prefix_BL: tokens that earlier ones see too.
        embedding_BPD, place_BP, noise_BLD: see `embed`.
        schedule: how microbatches go through the stages of a pipeline (sharding.Schedule), where the mesh has some.
        """
        config = self.config
        if token_BL.shape[1] > config.context_length:
            raise UserError(f"{token_BL.shape[1]} tokens are more than model.context_length={config.context_length}.")
        if position_BL is None:
            position_BL = jnp.broadcast_to(jnp.arange(token_BL.shape[1]), token_BL.shape)
        position_BL, ahead_N = self._behind_adapter(position_BL, token_BL.shape[1])
        keys = (None, None, None) if key is None else jax.random.split(key, 3)

        def attend(q, k, v, *, window, key, segment_BL, prefix_BL, ahead):
            options = {"window": window, "segment_BL": segment_BL, "prefix_BL": prefix_BL}
            options |= {} if ahead is None else {"ahead": ahead}  # which not every kernel takes
            out = attention.attend(self.kernel, q, k, v, dropout_rate=config.attention_dropout, key=key, **options)
            out = sharding.constrain(out, "batch", "length", "heads", None)
            return out, attention.largest_logit(q, k, **options) if log_activations else None

        def layer(x_BLD, block, kind, extra, rows):
            layer_keys, ahead = extra
            key_residual, key_attention = (None, None) if layer_keys is None else layer_keys
            masks = {name: rows[name] for name in ("segment_BL", "prefix_BL")} | {"ahead": ahead}
            attend_here = functools.partial(attend, window=kind.window, key=key_attention, **masks)
            position_BL = rows["position_BL"] if kind.rotary else None
            x_BLD, largest = block(x_BLD, attend_here, position_BL, key_residual)
            rms = jnp.sqrt(jnp.mean(jnp.square(x_BLD.astype(jnp.float32)))) if log_activations else None
            return x_BLD, {"activation_rms": rms, "max_attention_logit": largest}

        layer_keys = None if key is None else jax.random.split(keys[1], (config.n_layers, 2))
        x_BLD = self.embed(token_BL, position_BL, keys[0], embedding_BPD, place_BP, noise_BLD)
        rows = {"segment_BL": segment_BL, "position_BL": position_BL, "prefix_BL": prefix_BL}
        if schedule is None:
            x_BLD, numbers = self.scan(functools.partial(layer, rows=rows), x_BLD, self.blocks, (layer_keys, ahead_N))
        else:
            x_BLD, numbers = self._pipeline(layer, x_BLD, rows, layer_keys, schedule), {}
        return self.finish(x_BLD), {name: value for name, value in numbers.items() if value is not None}

    def scan(self, layer, x, blocks, extra_N):
        """Runs layer(x, block, kind, extra) -> (x, y) over stacked blocks; returns x and the y's stacked [N]."""
        period, n_layers = self.config.layer_period, jax.tree.leaves(blocks)[0].shape[0]
        by_period = jax.tree.map(lambda a: a.reshape(n_layers // period, period, *a.shape[1:]), (blocks, extra_N))

        def step(x, stacked_P):
            x = jax.tree.map(lambda a: checkpoint_name(a, "layer_input"), x)
            ys = []
            for i, kind in enumerate(self.layer_kinds):
                block, extra = jax.tree.map(lambda a: a[i], stacked_P)
                x, y = layer(x, block, kind, extra)
                ys.append(y)
            return x, jax.tree.map(lambda *y: jnp.stack(y), *ys)

        if self.config.remat != "none":
            # The scan keeps both computations apart: no need of a barrier, which would stop fusion.
            step = jax.checkpoint(step, policy=REMAT[self.config.remat], prevent_cse=False)
        x, ys = jax.lax.scan(step, x, by_period, unroll=min(self.config.scan_unroll, n_layers // period))
        return x, jax.tree.map(lambda y: y.reshape(n_layers, *y.shape[2:]), ys)

    def _pipeline(self, layer, x_BLD, rows, layer_keys, schedule):
        """x_BLD after all layers. Dropout is drawn for each microbatch: other numbers than without a pipeline."""
        assert self.adapter is None, "the mesh was checked with the adapter's model"

        def piece(x_bLD, rows, stacked, microbatch):
            blocks, key_data = stacked
            keys = None
            if key_data is not None:
                fold = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, microbatch)))
                keys = fold(jax.random.wrap_key_data(key_data))
            return self.scan(functools.partial(layer, rows=rows), x_bLD, blocks, (keys, None))[0]

        key_data = None if layer_keys is None else jax.random.key_data(layer_keys)
        return pipeline.run(piece, x_BLD, rows, (self.blocks, key_data), schedule)

    def _behind_adapter(self, position_BL, length: int):
        """(positions, (keys, values) of each layer that all of so many tokens see), as an adapter has them; None: nothing."""
        if self.adapter is None:
            return position_BL, None
        if self.position_embedding is not None and length + self.adapter.shift > self.config.context_length:
            behind = f"{length} tokens behind {self.adapter.shift} of model.adapter={self.config.adapter!r} are more"
            raise UserError(f"{behind} than model.context_length={self.config.context_length}.")
        return position_BL + self.adapter.shift, self.adapter.ahead(self)

    def finish(self, x_BLD):
        """Final activations from the residual stream after the last layer."""
        x_BLD = x_BLD if self.final_norm is None else self.final_norm(x_BLD)
        return parametrization.scaled(x_BLD, parametrization.logit_multiplier(self.config))

    def empty_cache(self, batch: int, length: int, dtype=None, apart: bool = False):
        """Keys and values of `length` positions in a dtype (None: that of the matmuls): each of the order cache_layout.STACKED.

        apart: of each layer instead, each of the order cache_layout.APART, for `extend` with layers taken apart.
        """
        config, dtype = self.config, dtype or DTYPES[self.config.dtype]
        sizes = {"N": config.n_layers, "B": batch, "M": length, "G": config.kv_heads, "K": config.head_size}
        shape = tuple(sizes[dim] for dim in (cache_layout.APART if apart else cache_layout.STACKED))
        pair = lambda: (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))  # noqa: E731
        return tuple(pair() for _ in range(config.n_layers)) if apart else pair()

    def extend(self, token_BL, cache, start, pad_B=None, layers=None):
        """Final activations [B, L, D] of tokens at places start, start+1, ... of the cache, and the cache with them in it.

        start: one place for all rows, or one for each, [B]; what lies beyond the cache is not kept.
        pad_B: how many places at the start of each row are padding, which nothing sees: positions count from there.
        layers: of `apart`, with a cache that is apart too.
        """
        place_BL = jnp.asarray(start)[..., None] + jnp.arange(token_BL.shape[1])
        position_BL = jnp.broadcast_to(place_BL, token_BL.shape)
        if pad_B is not None:
            position_BL = jnp.maximum(position_BL - pad_B[:, None], 0)
        begins = isinstance(start, int) and start == 0  # nothing in the cache is seen but these tokens
        first = jax.tree.leaves(cache)[0]
        assert token_BL.shape[1] <= first.shape[cache_layout.order(first).index("M")], (
            "more tokens than the cache has positions"
        )

        position_BL, ahead_N = self._behind_adapter(position_BL, first.shape[cache_layout.order(first).index("M")])

        def layer(carry, block, kind, extra):
            (x_BLD, cache), (index, ahead) = carry, extra

            def attend(q, k, v):
                new = tuple(a.astype(old.dtype) for old, a in zip(cache, (k, v)))
                updated = tuple(cache_layout.written(old, a, start, index) for old, a in zip(cache, new))
                seen = new if begins else (cache_layout.read(a, index) for a in updated)
                keys, values = (a.astype(q.dtype) for a in seen)
                if begins:
                    return self._attend_prompt(q, keys, values, kind.window, pad_B, ahead), updated
                options = {"window": kind.window, "pad_B": pad_B, "ahead": ahead}
                return attention.cached_attention(q, keys, values, start, **options), updated

            x_BLD, cache = block(x_BLD, attend, position_BL if kind.rotary else None)
            return (x_BLD, cache), None

        x_BLD = self.embed(token_BL, position_BL)
        if layers is None:
            (x_BLD, cache), _ = self.scan(
                layer, (x_BLD, cache), self.blocks, (jnp.arange(self.config.n_layers), ahead_N)
            )
        else:
            extended, kinds = [], self.layer_kinds
            for i, (block, of_layer) in enumerate(zip(layers, cache)):
                extra = None, jax.tree.map(lambda a, i=i: a[i], ahead_N)
                (x_BLD, of_layer), _ = layer((x_BLD, of_layer), block, kinds[i % len(kinds)], extra)
                extended.append(of_layer)
            cache = tuple(extended)
        return self.finish(x_BLD), cache

    def _attend_prompt(self, q_BLHK, k_BLGK, v_BLGK, window, pad_B, ahead):
        """Attention of the first tokens of rows to one another, by a kernel that can keep their padding apart; elsewhere all
        scores are in memory at a time."""
        length, kernel = q_BLHK.shape[1], attention.KERNELS[self.kernel]
        fused = self.kernel != "xla" and kernel.segments and length % kernel.block == 0
        if not fused or sharding.mesh_axis_size("sequence") > 1:
            return attention.cached_attention(q_BLHK, k_BLGK, v_BLGK, 0, window=window, pad_B=pad_B, ahead=ahead)
        segment_BL = None if pad_B is None else (jnp.arange(length) >= pad_B[:, None]).astype(jnp.int32)
        return attention.attend(self.kernel, q_BLHK, k_BLGK, v_BLGK, window=window, segment_BL=segment_BL)

    @staticmethod
    def lay_out(cache):
        """The cache, laid out on the mesh in context by rows and heads."""
        axes = {"B": "batch", "G": "heads"}
        return jax.tree.map(lambda a: sharding.constrain(a, *map(axes.get, cache_layout.order(a))), cache)

    @staticmethod
    def put_row(cache, one_row, row, pad):
        """The cache with what another holds of a single row, from its place `pad` on, at the first places of row `row`."""

        def put(into, new):
            rows_dim, places_dim = (cache_layout.order(into).index(dim) for dim in "BM")
            new = jnp.roll(new, -pad, axis=places_dim)
            new = jax.lax.slice_in_dim(new, 0, min(new.shape[places_dim], into.shape[places_dim]), axis=places_dim)
            return jax.lax.dynamic_update_slice_in_dim(into, new, row, axis=rows_dim)

        return jax.tree.map(put, cache, one_row)

    @staticmethod
    def take_rows(cache, order_B):
        """The cache with its rows in this order; one may come twice."""
        return jax.tree.map(lambda a: jnp.take(a, order_B, axis=cache_layout.order(a).index("B")), cache)
