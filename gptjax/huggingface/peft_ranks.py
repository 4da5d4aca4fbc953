"""Modules of PEFT's that have a multiple of the rank of the others, as ours are written where transformers has one matrix for
several of ours: such as c_attn of GPT-2 under lora(on='all'), whose rank is that of queries, keys and values together.

Of its B, each run of rank columns has entries in the rows of one of ours alone: by that it is known and parted again.
"""

import itertools
import re

import numpy as np

from gptjax.errors import UserError
from gptjax.models.adapters import targets


def of_modules(modules, tensors: dict) -> dict:
    """{module: its rank}, of the peft.Modules that the tensors of a LoRA are of."""
    ranks = {}
    for module in modules:
        if (A := tensors.get(f"{module.full_name(0)}.lora_A.weight")) is not None:
            ranks[module] = A.shape[0]
    return ranks


def common(values: dict, modules, tensors: dict, model, where) -> tuple[int, float, dict]:
    """(rank, alpha, {name of a module: the pieces it is parted into}) of an adapter_config.json and its tensors. Raises UserError: ranks
    or scales that ours have not."""
    ranks = of_modules(modules, tensors)
    if not ranks:
        return 0, 0.0, {}
    rank, power = min(ranks.values()), 0.5 if values.get("use_rslora") else 1.0
    scales = {_alpha(values, module) / r**power for module, r in ranks.items()}
    if max(scales) > min(scales) * (1 + 1e-6):
        raise UserError(f"{where} has updates of several scales (lora_alpha, alpha_pattern), and gptjax has one.")
    parted = {}
    for module, r in ranks.items():
        if r == rank:
            continue
        pieces = _pieces(module, tensors, rank, model)
        if pieces is None:
            raise UserError(
                f"{where} has rank {rank} and rank {r}, of {module.short_name}, and gptjax has one rank for all matrices."
            )
        parted[module.name] = pieces
    return rank, min(scales) * rank**power, parted


def _alpha(values: dict, module) -> float:
    """Of a module: the first pattern that its name ends with, as PEFT has it, or else lora_alpha."""
    for pattern, alpha in (values.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module.name.format(0)):
            return alpha
    return values["lora_alpha"]


def _pieces(module, tensors: dict, rank: int, model) -> tuple[str, ...] | None:
    """The pieces of ours that a module's updates are of, one for each run of rank columns of its B; None: of no such."""
    names = tuple(name for name, _ in module.of.pieces)
    whole = [tensors.get(f"{module.full_name(layer)}.lora_B.weight") for layer in range(model.n_layers)]
    shape = (module.fan_out, rank * max(1, whole[0].shape[1] // rank)) if whole[0] is not None else ()
    if module.layout is None or any(B is None or B.shape != shape for B in whole):
        return None
    runs = [np.split(module.outputs_in(B), B.shape[1] // rank) for B in whole]  # [rank, *outputs] each
    for pieces in itertools.combinations(names, len(runs[0])):
        if all(_is_of(module.of, piece, run) for layer in runs for piece, run in zip(pieces, layer, strict=True)):
            return pieces
    return None


def _is_of(of: targets.Map, piece: str, array) -> bool:
    """Whether [rank, *outputs] has entries in one piece alone."""
    start = 0
    for name, size in of.pieces:
        if name != piece and np.any(array.take(range(start, start + size), axis=1 + of.dim)):
            return False
        start += size
    return True


def part(whole: dict, pieces: tuple[str, ...], of: targets.Map, take) -> dict:
    """{piece: its A, B and perhaps magnitude} of those of a whole map. take: (of, piece, [..., *outputs]) -> those of it."""
    rank = whole["A"].shape[-1] // len(pieces)
    made = {}
    for number, piece in enumerate(pieces):
        run = slice(number * rank, (number + 1) * rank)
        made[piece] = {"A": whole["A"][..., run], "B": take(of, piece, whole["B"][run])}
        if "magnitude" in whole:
            made[piece]["magnitude"] = take(of, piece, whole["magnitude"])
    return made
