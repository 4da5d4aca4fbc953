"""What reinforcement learning holds on a device beside a train step: up to four models, and the cache of the answers that are
sampled. From shapes alone, laid out as training lays them out.
"""

import math

import jax
import numpy as np

from gptjax import hardware
from gptjax.config import catalogue
from gptjax.errors import UserError
from gptjax.models import layers, placed
from gptjax.parallel import sharding
from gptjax.planning import info, topology
from gptjax.posttrain.answering import SLOTS
from gptjax.terminal import columns, si
from gptjax.training import losses
from gptjax.training import program as programs

SIZES = ("params", "gradients", "moments", "cache")


def models(config, devices: int | None = None, machine: str | None = None, num_slices: int = 1) -> list[dict]:
    """Bytes on a device: {"name", "parameters", "params", "gradients", "moments", "cache"} of the policy, its critic, the
    reference and, where the critic is a model of its own, a reward model of the critic's shape.

    Gradients are in float32, moments with a moving average where one is kept. The cache is of rl.slots answers as long as
    the context. Raises UserError: a config without reinforcement learning, or as `info`.
    """
    config = info.resolved(config)
    if config.rl.prompts is None:
        raise UserError("--rl is of reinforcement learning, but rl.prompts is None; set rl.prompts, or leave --rl out.")
    mesh = info.abstract_mesh(config, devices, machine, num_slices)
    program = programs.build(config, mesh, "xla")
    state, places = program.abstract_state, program.state_sharding
    rows = []
    for name, is_chosen in (("policy", lambda path: "critic" not in path), ("critic", lambda path: "critic" in path)):
        if parts := _chosen(state.params, places.params, is_chosen):
            kept = _chosen((state.opt_state, state.ema), (places.opt_state, places.ema), is_chosen)
            rows.append(_row(name, parts, gradients=_bytes(parts, "float32"), moments=_bytes(kept)))
    rows[0]["cache"] = _cache_bytes(config, mesh)
    if config.rl.reference is not None:
        rows.append(_row("reference", _chosen(state.params, places.params, lambda path: "critic" not in path)))
    if config.model.critic is not None and (trunk := catalogue.critic(config.model.critic).trunk(config.model)):
        reward = placed.place(trunk, config.mesh, mesh, "xla")
        rows.append(_row("reward model", _chosen(reward.abstract_params, reward.param_sharding, lambda path: True)))
    return rows


def _chosen(tree, places, is_chosen) -> list[tuple]:
    """(array, where it lies) of the leaves whose path, as names, is chosen."""
    leaves, where = jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(places)
    names = [{str(getattr(key, "key", getattr(key, "name", ""))) for key in path} for path, _ in leaves]
    return [(leaf, at) for path, (_, leaf), at in zip(names, leaves, where, strict=True) if is_chosen(path)]


def _bytes(parts: list[tuple], dtype: str | None = None) -> int:
    leaves = [jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype) for leaf, _ in parts]
    return sharding.bytes_on_one_device(leaves, [at for _, at in parts])


def _row(name: str, parts: list[tuple], gradients: int = 0, moments: int = 0) -> dict:
    entries = sum(math.prod(leaf.shape) for leaf, _ in parts)
    sizes = {"params": _bytes(parts), "gradients": gradients, "moments": moments, "cache": 0}
    return {"name": name, "parameters": entries} | sizes


def _cache_bytes(config, mesh) -> int:
    """Of the keys and values of the answers that are sampled at a time, laid out by rows and heads."""
    model, sizes = config.model, dict(mesh.shape)
    slots = config.rl.slots or SLOTS
    entries = 2 * model.n_layers * slots * model.context_length * model.kv_heads * model.head_size
    shards = math.gcd(slots, sizes["replica"] * sizes["fsdp"]) * math.gcd(model.kv_heads, sizes["tensor"])
    return entries * np.dtype(layers.DTYPES[model.dtype]).itemsize // shards


def table(rows: list[dict], machine: str | None = None, num_slices: int = 1) -> str:
    """models() for a person, and whether they leave room on a machine that has a known memory."""
    lines = [("bytes per device", "parameters", *SIZES, "sum")]
    total = {"name": "all", "parameters": sum(row["parameters"] for row in rows)}
    total |= {size: sum(row[size] for row in rows) for size in SIZES}
    for row in [*rows, total]:
        held = [f"{si(row[size])}B" for size in SIZES] + [f"{si(sum(row[size] for size in SIZES))}B"]
        lines.append((row["name"], si(row["parameters"]), *held))
    chip = None if machine is None else hardware.CHIPS.get(topology.parse(machine, num_slices)[0])
    if chip is None:
        return "\n".join(columns(lines))
    memory, held = chip.hbm_bytes // chip.devices_per_chip, sum(total[size] for size in SIZES)
    fits = f"fits, {held / memory:.1%} of" if held < memory else "does not fit into"
    room = f"{fits} the {memory / hardware.GIB:.0f} GiB of a device; gptjax plan adds what a step needs"
    return "\n".join([*columns(lines), room])


def batch_shapes(config) -> dict[str, tuple[tuple[int, ...], type]]:
    """{name: (shape, dtype)} of what a step of a policy loss reads (posttrain/policy_losses.py)."""
    loss, length = losses.of(config), config.model.context_length
    names = ["weight_BL", "logprob_BL", "advantage_BL"]
    names += ["reference_BL"] * (config.rl.reference is not None) + ["old_BL"] * loss.corrects
    names += ["value_BL", "return_BL"] * loss.needs_critic

    def tokens(rows: int, prefix: str, names) -> dict:
        of_tokens = {f"{prefix}token_BT": ((rows, length + 1), np.int32)}
        return of_tokens | {f"{prefix}{name}": ((rows, length), np.float32) for name in names}

    shapes = tokens(config.train.batch_size, "", names)
    if config.rl.ptx is not None:
        rows = config.rl.ptx_rows or config.train.batch_size
        shapes |= tokens(rows, "ptx_", ["weight_BL"])
        if config.data.documents_apart:
            shapes |= {"ptx_segment_BT": ((rows, length + 1), np.int32), "ptx_position_BL": ((rows, length), np.int32)}
    return shapes
