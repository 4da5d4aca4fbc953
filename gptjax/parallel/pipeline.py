"""Pipeline parallelism over the stacked layers: microbatches go from stage to stage, once or several times round.

The schedule is a loop in which all stages run at once, each on another microbatch, and then hand their activations on
(GPipe, Huang et al. 2019, written for one program as in GSPMD, Xu et al. 2021, section 3.3). With `repeats` > 1 it is
circular (Narayanan et al. 2021, section 2.2): a stage holds several pieces of the model, and a microbatch goes round
so often, which shortens the time that stages wait at both ends of a step from (S - 1) / M to (S - 1) / (M * R).

Axes: S stages, R repeats, M microbatches, b sequences of a microbatch, N layers.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gptjax.parallel import sharding


def run(piece, x, rows, layers, schedule: sharding.Schedule):
    """piece(x, rows, layers, microbatch) -> x, with all the layers in turn, on every microbatch of a batch.

    x [B, ...] are activations, rows a tree of arrays [B, ...] that go with them unchanged, layers a tree of arrays
    [N, ...]. piece gets those of b sequences and N / (S * R) layers, and the number of the microbatch.
    """
    M, R, S = schedule.microbatches, schedule.repeats, sharding.mesh_axis_size("stage")
    x_Mb, rows_Mb = jax.tree.map(lambda a: _place(split_batch(a, M), None), (x, rows))
    layers_RS = jax.tree.map(lambda a: to_circular(a, R), layers)

    def stage(x_b, layers_R, index):
        """One stage on the microbatch it has now. index counts the pieces of work a stage has begun."""
        microbatch, repeat = index % M, jnp.clip(index // M, 0, R - 1)
        here = jax.tree.map(lambda a: _piece(a, repeat), layers_R)
        rows_b = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, microbatch, keepdims=False), rows_Mb)
        return piece(x_b, rows_b, here, microbatch)

    all_stages = jax.vmap(stage, in_axes=(0, 1, 0), spmd_axis_name="stage")

    def iteration(carry, i):
        """x_Mb holds what goes into the first stage next; the last one's output takes its place."""
        x_Mb, made_Sb = carry
        first_b = jax.lax.dynamic_index_in_dim(x_Mb, i % M, keepdims=False)
        from_before_Sb = jnp.roll(made_Sb, 1, axis=0)
        is_first_S = (jnp.arange(S) == 0).reshape(S, *(1,) * (x.ndim))
        given_Sb = _place(jnp.where(is_first_S, first_b, from_before_Sb), "stage")
        made_Sb = _place(all_stages(given_Sb, layers_RS, i - jnp.arange(S)), "stage")
        done = i - (S - 1)
        replaced = jax.lax.dynamic_update_index_in_dim(x_Mb, made_Sb[-1], done % M, 0)
        return (_place(jnp.where(done >= 0, replaced, x_Mb), None), made_Sb), None

    nothing_yet = _place(jnp.zeros((S, *x_Mb.shape[1:]), x.dtype), "stage")
    (x_Mb, _), _ = jax.lax.scan(iteration, (x_Mb, nothing_yet), jnp.arange(M * R + S - 1))
    return join_batch(x_Mb)


def _piece(a, repeat):
    """[R, ...] -> [...]: a stage's layers of one time round.

    The only piece is the same in every iteration. Sliced out all the same, the backward pass would keep it of each: so
    many float32 copies of the stage's weights.
    """
    return a[0] if len(a) == 1 else jax.lax.dynamic_index_in_dim(a, repeat, keepdims=False)


def split_batch(a, microbatches: int):
    """[B, ...] -> [M, b, ...]: row r goes to microbatch r % M, so that no row leaves its device."""
    return a.reshape(a.shape[0] // microbatches, microbatches, *a.shape[1:]).swapaxes(0, 1)


def join_batch(a):
    """The inverse of split_batch."""
    return a.swapaxes(0, 1).reshape(-1, *a.shape[2:])


def _place(a, leading: str | None):
    """[M or S, b, L, ...], the first dimension split over the stages or not."""
    names = ("layers" if leading else None, "batch", *("residual", "width")[: a.ndim - 2])
    return sharding.constrain(a, *names)


def to_circular(a, repeats: int):
    """[N, ...] -> [R, S, N / (R * S), ...]: piece r * S + s of the layers stands at [r, s], on stage s.

    A state keeps its layers in order, an equal share on each stage, whatever the schedule: so checkpoints do not
    depend on it. A circular schedule exchanges pieces here, in every step: a stage's share of the parameters once,
    which is little beside the activations of a pipeline worth its name.
    """
    stages = sharding.mesh_axis_size("stage")
    if repeats == 1:
        return a.reshape(1, stages, -1, *a.shape[1:])

    def exchange(a):
        pieces = a.reshape(repeats, -1, *a.shape[1:])
        taken = jnp.zeros_like(pieces)
        stage = jax.lax.axis_index("stage")
        for moves in _rounds(stages, repeats):
            slot_from = jnp.array([slot for _, slot, _, _ in moves])
            slot_to = jnp.array([slot for _, _, _, slot in sorted(moves, key=lambda move: move[2])])
            sent = jax.lax.dynamic_index_in_dim(pieces, slot_from[stage])
            got = jax.lax.ppermute(sent, "stage", [(source, target) for source, _, target, _ in moves])
            taken = jax.lax.dynamic_update_slice_in_dim(taken, got, slot_to[stage], 0)
        return taken[:, None]

    places = {"in_specs": PartitionSpec("stage"), "out_specs": PartitionSpec(None, "stage")}
    return jax.shard_map(exchange, axis_names={"stage"}, check_vma=False, **places)(a)


def _rounds(stages: int, repeats: int) -> list[list[tuple[int, int, int, int]]]:
    """Moves (from stage, its slot, to stage, its slot) in rounds in which every stage sends and receives one piece.

    Piece c stands in slot c % R of stage c // R and belongs into slot c // S of stage c % S. Stages whose pieces go to
    the same stages send another slot in each round.
    """
    group = stages // math.gcd(stages, repeats)

    def move(stage: int, number: int):
        slot = (number + stage // group) % repeats
        piece = stage * repeats + slot
        return stage, slot, piece % stages, piece // stages

    return [[move(stage, number) for stage in range(stages)] for number in range(repeats)]
