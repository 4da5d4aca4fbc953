"""The loss of answers from the logits of their tokens alone: of conversations, where most other tokens bear none.

How many tokens of a row are targets is known on the device only, and shapes are not. So the loss stands in the program once
for each of PARTS shares of a row, and the batch at hand goes through the smallest that holds the targets of all of its rows.
The gradient is computed with the loss: the branch that was taken leaves nothing else to the backward pass, and no logits.

Axes: B rows, L inputs of one, P places of it that are looked at, D width, V padded vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

from gptjax.parallel import sharding

PARTS = 8  # shares of a row: more leave fewer logits without a use, and take longer to compile


def apply_to(config) -> bool:
    """Whether a Config's loss is of some tokens only, on a mesh that leaves each row whole on its device."""
    return (
        config.data.chat is not None and config.data.chat_loss != "all" and not sharding.length_is_split(at_head=True)
    )


def head(weight_BL, sums, per_token):
    """A head for LanguageModel.token_loss that returns (objective, loss sum), float32 scalars.

    sums: (weight, *arrays that per_token makes) -> those two. per_token: such as `loss.cross_entropy`. Only the objective has
    a gradient.
    """

    def of_rows(x_BLD, head_VD, target_BL, **options):
        def at_places(places: int, x_BLD, head_VD, target_BL, weight_BL):
            order_BP = jnp.argsort(weight_BL == 0, axis=1)[:, :places]  # stable: targets first
            x_BPD = jnp.take_along_axis(x_BLD, order_BP[..., None], axis=1)
            target_BP, weight_BP = (jnp.take_along_axis(a, order_BP, axis=1) for a in (target_BL, weight_BL))
            return sums(weight_BP, *per_token(x_BPD, head_VD, target_BP, **options))

        objective, loss_sum = _smallest(at_places, x_BLD, head_VD, target_BL, weight_BL)
        return objective, jax.lax.stop_gradient(loss_sum)

    return of_rows


def shares(length: int) -> list[int]:
    """Numbers of places, increasing, the last of which is a whole row."""
    return sorted({-(-length * part // PARTS) for part in range(1, PARTS + 1)})


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _smallest(at_places, x_BLD, head_VD, target_BL, weight_BL):
    """at_places(places, ...) with the smallest of `shares` that holds the targets of each row."""
    return _branch(at_places, x_BLD, head_VD, target_BL, weight_BL)


def _branch(function, *arrays):
    sizes, most = shares(arrays[-1].shape[1]), (arrays[-1] != 0).sum(axis=1).max()
    index = jnp.searchsorted(jnp.array(sizes), most)
    return jax.lax.switch(index, [functools.partial(function, places) for places in sizes], *arrays)


def _forward(at_places, *arguments):
    """With symbolic zeros: a frozen output matrix has no gradient, which is not computed then."""
    moving = tuple(i for i in (0, 1) if arguments[i].perturbed)

    def with_gradient(places, *arrays):
        return jax.value_and_grad(functools.partial(at_places, places), moving, has_aux=True)(*arrays)

    value, grads = _branch(with_gradient, *(argument.value for argument in arguments))
    return value, dict(zip(moving, grads))


def _backward(at_places, grads, cotangents):
    scaled = {i: jax.tree.map(lambda g: (g * cotangents[0]).astype(g.dtype), grad) for i, grad in grads.items()}
    return scaled.get(0), scaled.get(1), None, None


_smallest.defvjp(_forward, _backward, symbolic_zeros=True)
