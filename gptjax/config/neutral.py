"""A config's model, text and optimizer without its run, for what looks at these alone: parity, the coordinate check, benches.

What a run adds (its length, mesh, microbatches, logs, checkpoints, evaluations, updates left out) stands at its default,
whatever fields there will be: a list of those to reset would miss the next one.
"""

import dataclasses

from gptjax.config.fields import CheckpointConfig, EvalConfig, MeshConfig, TrainConfig

KEPT = (
    "seed",
    "vocab_chunks",
    "loss",
    "lm_coef",
    "z_loss",
    "label_smoothing",
    "neftune_alpha",
    "trainable",
)  # of train: they decide what one step computes


def neutral(config, **sections: dict):
    """config for one device and one step, with these fields of sections changed: `neutral(config, train={"steps": 3})`.

    Raises UserError: fields that do not go together.
    """
    kept = {name: getattr(config.train, name) for name in KEPT}
    bare = {
        "model": config.model,
        "data": config.data,
        "optim": dataclasses.replace(config.optim, skip="none"),
        "mesh": MeshConfig(**dict.fromkeys(MeshConfig.AXES, 1)),
        "train": TrainConfig(steps=1, **kept),
        "checkpoint": CheckpointConfig(every_steps=None),
        "eval": EvalConfig(every_steps=None),
    }
    changed = {name: dataclasses.replace(section, **sections.get(name, {})) for name, section in bare.items()}
    return dataclasses.replace(config, **changed)
