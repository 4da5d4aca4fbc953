"""What all language models here have in common: tokens to losses and logits, by way of a model's final activations.

Axes: B batch, L length, T = L + 1, D width, V padded vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptjax.models import layers, loss
from gptjax.parallel import context, sharding


class LanguageModel(nnx.Module):
    """A model gives it `config`, `token_embedding`, `head` (None: the embedding), stacked layers `blocks`, and
    activations(token_BL, **options) -> (final activations [B, L, D], a dict of per-layer numbers)."""

    @property
    def head_VD(self):
        return self.token_embedding[...] if self.head is None else self.head[...]

    def token_loss(
        self,
        token_BT,
        *,
        target_BL=None,
        segment_BL=None,
        position_BL=None,
        prefix_BL=None,
        place_BP=None,
        noise_BLD=None,
        chunks: int = 1,
        head=loss.cross_entropy,
        **options,
    ):
        """Of predicting each token of token_BT [B, L + 1] from those before it: the loss in nats, the logsumexp of the
        logits, both [B, L] float32, and the numbers of `activations`. chunks: see `loss.cross_entropy`.

        target_BL: what is predicted at each of the first L tokens instead of the next. head: what is made of final
        activations, output matrix and target instead of those two, such as `loss.scores`; all that it makes is [B, L].
        noise_BLD: added to the embeddings."""
        input_BL = token_BT[:, :-1]
        target_BL = token_BT[:, 1:] if target_BL is None else target_BL
        order_L = context.device_order(input_BL.shape[1])
        if order_L is not None:
            if position_BL is None:
                position_BL = jnp.broadcast_to(jnp.arange(input_BL.shape[1]), input_BL.shape)
            input_BL, target_BL, segment_BL, position_BL, prefix_BL, noise_BLD = jax.tree.map(
                lambda a: a[:, order_L], (input_BL, target_BL, segment_BL, position_BL, prefix_BL, noise_BLD)
            )
            if place_BP is not None:  # of given embeddings
                place_BP = jnp.asarray(np.argsort(order_L)).at[place_BP].get(mode="fill", fill_value=len(order_L))
        given = {"segment_BL": segment_BL, "position_BL": position_BL, "prefix_BL": prefix_BL}
        of_some = {"place_BP": place_BP, "noise_BLD": noise_BLD}  # which not every model takes
        options |= given | {name: array for name, array in of_some.items() if array is not None}
        x_BLD, numbers = self.activations(input_BL, **options)
        made = head(
            sharding.constrain(x_BLD, "batch", "head_length", "width"),
            self.head_VD,
            target_BL,
            vocab_size=self.config.vocab_size,
            chunks=chunks,
            softcap=self.config.logit_softcap,
        )
        if order_L is not None:
            made = [array_BL[:, np.argsort(order_L)] for array_BL in made]
        return *made, numbers

    def __call__(self, token_BL, **options):
        """Float32 logits [B, L, vocab_size]."""
        return self.logits(self.activations(token_BL, **options)[0])

    def logits(self, x_BLD, columns: bool = False):
        """Float32 logits [..., vocab_size] of final activations [..., D]. columns: by layers.by_columns."""
        product = layers.by_columns if columns else None
        return loss.logits(x_BLD, self.head_VD, self.config.logit_softcap, product)[..., : self.config.vocab_size]

    def apart(self, columns: bool = False) -> tuple:
        """The layers one by one, each with arrays of its own: for `extend`, where a slice of the stack would be copied. columns:
        with linear maps as layers.by_columns and by_rows read them, but for an LSTM, which reads its matrices otherwise."""
        columns = columns and self.config.has_attention
        apart = tuple(jax.tree.map(lambda a, i=i: a[i], self.blocks) for i in range(self.config.n_layers))
        for _, module in (named for block in apart if columns for named in nnx.iter_modules(block)):
            if isinstance(module, layers.Linear) and module.adapter is None and module.block_dim is None:
                module.turn()
        return apart
