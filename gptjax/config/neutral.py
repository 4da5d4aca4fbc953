"""A config's model, text and optimizer without its run, for what looks at these alone: parity, the coordinate check, benches.

What a run adds (its length, mesh, microbatches, logs, checkpoints, evaluations, updates left out) stands at its default,
whatever fields there will be: a list of those to reset would miss the next one.
"""

import dataclasses

from gptjax.config.fields import CheckpointConfig, EvalConfig, MeshConfig, RLConfig, TrainConfig

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
    config = config if config.rl.prompts is None else _of_text(config)
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


def _of_text(config):
    """A Config of reinforcement learning, whose batches only a run makes, with the policy learning text instead."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, critic=None),
        data=dataclasses.replace(config.data, chat=None),
        train=dataclasses.replace(config.train, loss="next_token", critic_from=None),
        rl=RLConfig(),
        eval=EvalConfig(every_steps=None),
    )
