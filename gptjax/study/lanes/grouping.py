"""Which runs of a study may share a process: those that one compiled step can train side by side.

Runs of a group differ in what that step is given or never sees: seeds, the order of rows, learning rates and schedules.
"""

import json

from gptjax import flops, schedule
from gptjax.training import executable

MOST_RUNS = 16  # of a group: more gain nothing on a CPU, and a kill costs all of them
MOST_BYTES = 2**31  # of all states of a group
MOST_FLOPS = 2e9  # of a step: larger runs fill a CPU's cores by themselves (docs/studies_batched.md)


def groups(configs: dict, most_runs: int = MOST_RUNS) -> list[list[str]]:
    """Keys of configs ({key: Config}, vocab_size set) in groups that may share a process; a run that may not is alone.

    The order is that of configs, groups by their first member.
    """
    found, alone = {}, []
    for key, config in configs.items():
        if obstacle(config) is None:
            found.setdefault(shape(config), []).append(key)
        else:
            alone.append([key])
    cut = [part for keys in found.values() for part in _cut(keys, min(most_runs, _fitting(configs[keys[0]])))]
    order = {key: i for i, key in enumerate(configs)}
    return sorted(cut + alone, key=lambda keys: order[keys[0]])


def _cut(keys: list[str], most: int) -> list[list[str]]:
    """In parts of nearly the same size, of at most so many."""
    parts = -(-len(keys) // most)
    edges = [len(keys) * i // parts for i in range(parts + 1)]
    return [keys[a:b] for a, b in zip(edges, edges[1:])]


def _fitting(config) -> int:
    """Runs whose states are MOST_BYTES: parameters, gradients, two moments and an average, 4 bytes each at most."""
    return max(1, int(MOST_BYTES // (flops.parameters(config.model).total * 4 * 5)))


def shape(config) -> str:
    """Equal for runs that one compiled step trains, read the same text and do everything else at the same steps."""
    values = config.to_dict()
    values["data"].pop("seed")
    program = executable.config_hash(config.replace(train={"seed": 0}))
    same = [values[section] for section in ("data", "checkpoint", "eval", "mesh")]
    return json.dumps([program, schedule.total_steps(config), *same], sort_keys=True)


def obstacle(config) -> str | None:
    """Why a run cannot share a process with others, or None."""
    train, mesh = config.train, config.mesh
    sizes = [getattr(mesh, name) for name in (*mesh.AXES, "dcn_replica", "dcn_fsdp")]
    if config.model.vocab_size is None:
        return "its vocabulary is not known yet (model.vocab_size)"
    reasons = {
        "its mesh asks for several devices": max(sizes) > 1,
        "mesh.offload_optimizer keeps its state elsewhere": mesh.offload_optimizer,
        "model.remat='offload' keeps activations elsewhere": config.model.remat == "offload",
        "it has a batch ramp": train.batch_ramp_start is not None,
        "it may skip updates (optim.skip)": config.optim.skip != "none",
        "it may roll back (train.max_rollbacks)": train.max_rollbacks > 0,
        "it is profiled (train.profile_steps)": train.profile_steps is not None,
        "it starts from another run (train.start_from)": train.start_from is not None,
        "it logs to Weights & Biases": train.wandb_project is not None,
        "it may end early (train.stop_metric)": train.stop_metric is not None,
        "it keeps its best checkpoint (checkpoint.keep_best)": config.checkpoint.keep_best is not None,
        "it evaluates tasks": config.eval.tasks is not None,
        "it learns from labelled examples (data.task)": config.data.task is not None,
        "it learns from preferences (data.preferences)": config.data.preferences is not None,
        "it learns from rewards (rl.prompts)": config.rl.prompts is not None,
        f"its steps are over {MOST_FLOPS:g} FLOPs": flops_of_a_step(config) > MOST_FLOPS,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def flops_of_a_step(config) -> float:
    """Of one run, exact."""
    return flops.train_flops_per_sequence(config.model) * config.train.batch_size
