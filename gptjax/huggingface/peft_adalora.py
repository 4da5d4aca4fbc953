"""AdaLoRA as PEFT keeps it: lora_A [rank, in], lora_E [rank, 1], lora_B [out, rank], without the rows and columns of the ranks
that were given up where rank_pattern lists them. Those come back as zeros, which compute the same: the scale goes by init_r.
PEFT's scale is alpha / (init_r + 1e-5), ours without that.
"""

import numpy as np

from gptjax import schedule
from gptjax.errors import UserError

FIELDS = {  # theirs: ours
    "init_r": "rank", "target_r": "target", "lora_alpha": "alpha", "lora_dropout": "dropout", "tinit": "steps_before",
    "tfinal": "steps_after", "deltaT": "every", "beta1": "beta1", "beta2": "beta2", "orth_reg_weight": "orthogonality",
}  # fmt: skip


def config_out(kind, adapted) -> dict:
    """Fields of adapter_config.json. adapted: [(module, our pieces in it)]. Raises UserError: a module has several pieces,
    which would be of a larger rank, and PEFT has one for all."""
    for module, pieces in adapted:
        if len(pieces) > 1:
            raise UserError(
                f"model.adapter with on={kind.on!r} has {' and '.join(pieces)} of {module.short_name}, which are one matrix in PEFT's model; PEFT's"
                " AdaLoRA takes it whole: train with qkv in place of q, k and v to export."
            )
    fields = {theirs: getattr(kind, ours) for theirs, ours in FIELDS.items()}
    return fields | {
        "peft_type": "ADALORA",
        "r": 8,  # of no use there, and warned of where it is another
        "use_dora": False,
        "use_rslora": False,
        "rank_pattern": None,
        "bias": "none",
        "init_lora_weights": True,
    }


def total_step(kind, config) -> int:
    """Steps of the run, which PEFT wants to be more than both phases without a choice of ranks, also of a run that never
    trained."""
    return max(schedule.total_steps(config), kind.steps_before + kind.steps_after + 1)


def config_in(values: dict, names: str) -> str:
    """model.adapter of an adapter_config.json. names: of the matrices, `on`."""
    fields = {ours: values[theirs] for theirs, ours in FIELDS.items()} | {"on": names}
    fields["alpha"] = float(fields["alpha"])
    return f"adalora({', '.join(f'{name}={value!r}' for name, value in fields.items())})"


def renamed(tensors: dict) -> dict:
    """lora_A and lora_B without ".weight"."""
    return {name.removesuffix(".weight"): array for name, array in tensors.items()}


def with_lost_ranks(values: dict, tensors: dict, where) -> dict:
    """tensors with zeros at the ranks that rank_pattern says are gone. Raises UserError: it does not fit them."""
    filled = dict(tensors)
    for name, kept in (values.get("rank_pattern") or {}).items():
        stem = name.removeprefix("base_model.model.").removesuffix(".lora_E")
        rank = np.asarray(kept, bool)
        for part, axis in (("lora_A", 0), ("lora_E", 0), ("lora_B", 1)):
            full = f"base_model.model.{stem}.{part}"
            if full not in tensors or tensors[full].shape[axis] != rank.sum():
                raise UserError(
                    f"{where}: rank_pattern keeps {rank.sum()} ranks of {name}, and {full} has not as many."
                )
            shape = list(tensors[full].shape)
            shape[axis] = len(rank)
            whole = np.zeros(shape, np.float32)
            whole[(slice(None),) * axis + (rank,)] = tensors[full]
            filled[full] = whole
    return filled
