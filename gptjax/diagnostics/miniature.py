"""A config in miniature: the same structure at sizes that a CPU runs in a second, for `parity`.

What decides how a size divides over eight devices stays: how often it divides by two, up to eight, and whether it is
a power of two at all. So 25 heads become 3, 96 become 24, and what the whole config refuses its miniature refuses too.
"""

import math
import re

from gptjax.config.neutral import neutral

DEVICES = 8  # a size that divides by it divides over every axis of a mesh of so many devices
POWERS = int(math.log2(DEVICES))
PEAK_LR = 3e-3  # moves parameters of 0.1 to 1 by 0.3% to 3% a step, far above the rounding of float32


def shrink(config, steps: int):
    """The miniature of a config, `steps` long. Its kind of model, optimizer, schedule, z-loss and packing are kept."""
    rows = config.train.batch_size // config.train.microbatches
    rows = DEVICES if rows % DEVICES == 0 else small(rows, least=DEVICES)
    microbatches = small(config.train.microbatches, powers=1)
    return neutral(
        config,
        model=_model(config),
        data={"mask_documents": config.data.documents_apart},
        optim=_optim(config, steps, rows * max(microbatches, 2)),
        mesh={"offload_optimizer": config.mesh.offload_optimizer, "cpu_devices": DEVICES},
        train={
            "steps": steps,
            "batch_size": rows * max(microbatches, 2),
            "microbatches": microbatches,
            "vocab_chunks": small(config.train.vocab_chunks),
            "log_every": 1,
            "trainable": _trainable(config),
        },
    )


def small(size: int, least: int = 1, powers: int = POWERS) -> int:
    """The smallest number from `least` on that is as odd as size: as often divisible by two, up to 2**powers, and a
    power of two exactly if size is. size itself if that is smaller."""
    twos = size & -size
    kept = min(twos, 2**powers)
    odd = 1 if twos == size else 3
    while kept * odd < least:
        kept, odd = (2 * kept, odd) if kept == 2**powers or odd == 1 else (kept, odd + 2)
    return min(size, kept * odd)


def _model(config) -> dict:
    model = config.model
    context = small(model.context_length, least=16, powers=POWERS + 2)
    return {
        "vocab_size": _vocabulary(config),
        "context_length": context,
        "n_layers": _layers(model),
        "embed_dropout": 0.0,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "dtype": "float32",
        "attention": "auto",
        "scan_unroll": 1,
        **(_heads(model, context) if model.has_attention else {"d_model": small(model.d_model, least=16)}),
    }


def _heads(model, context: int) -> dict:
    groups, ratio = small(model.kv_heads), small(model.n_heads // model.kv_heads)
    heads_twos = (groups * ratio) & -(groups * ratio)
    head_size = small(model.head_size, least=4, powers=max(2, POWERS + 1 - heads_twos.bit_length()))  # for d_model
    d_model = groups * ratio * head_size if model.head_dim is None else small(model.d_model, least=16)
    band = model.band_width and max(
        2, min(context, model.band_width, model.band_width * context // model.context_length)
    )
    return {
        "d_model": d_model,
        "n_heads": groups * ratio,
        **_base(model, {"base_width": d_model / model.d_model, "base_depth": _layers(model) / model.n_layers}),
        "n_kv_heads": model.n_kv_heads and groups,
        "head_dim": model.head_dim and head_size,
        "d_ff": model.d_ff and small(model.d_ff, least=16),
        "band_width": band,
    }


def _base(model, shares: dict) -> dict:
    """The sizes that a parametrisation starts from, as far from those of the model as they are in the config."""
    shares = shares | {"base_d_ff": small(model.ff_size, least=16) / model.ff_size}
    return {name: (base := getattr(model, name)) and max(1, round(base * share)) for name, share in shares.items()}


def _layers(model) -> int:
    """As often divisible by two, up to eight, as the config's: what a pipeline of eight devices asks. Two periods at
    least, so that one follows another."""
    periods = model.n_layers // model.layer_period
    return model.layer_period * min(periods, max(2, math.gcd(periods, DEVICES)))


def _trainable(config) -> str | None:
    """train.trainable, with the upper half of the layers for whichever of them it names."""
    given = config.train.trainable
    return given and re.sub(r"\bblocks\[[^]]*\]", f"blocks[{_layers(config.model) // 2}:]", given)


def _vocabulary(config) -> int:
    """Padded, it divides by the chunks of the loss; as it is, by nothing, if that is so of the config's."""
    unit = math.lcm(128, small(config.train.vocab_chunks))
    padded = unit * -(-256 // unit)
    whole = config.model.vocab_size is not None and config.model.vocab_size % 128 == 0
    return padded if whole else padded - 63


def _optim(config, steps: int, batch_size: int) -> dict:
    """The schedule squeezed: one step of warm-up, and a decay that ends at twice the steps that are run."""
    optim, tokens_per_step = config.optim, batch_size * _model(config)["context_length"]
    return {
        "peak_lr": max(optim.peak_lr, PEAK_LR),
        "warmup_steps": optim.warmup_steps and 1,
        "warmup_tokens": optim.warmup_tokens and tokens_per_step,
        "decay_steps": None if optim.decay_tokens else 2 * steps,
        "decay_tokens": optim.decay_tokens and 2 * steps * tokens_per_step,
        "moment_dtype": "float32",
        "param_dtype": "float32",
    }


def differences(config) -> list[str]:
    """What the miniature leaves out of a config beside its sizes, one line each."""
    stored = (config.optim.moment_dtype, config.optim.param_dtype)
    left_out = {
        "dropout is off: its random numbers differ between pipeline microbatches": config.model.max_dropout,
        f"float32 instead of {config.model.dtype}": config.model.dtype != "float32",
        "moments are not factored, as adafactor's of such small matrices": config.optim.name == "adafactor",
        "moments and parameters are stored in float32": stored != ("float32", "float32"),
        "no batch ramp": config.train.batch_ramp_start,
        f"no update is left out (optim.skip={config.optim.skip!r})": config.optim.skip != "none",
        "one microbatch for each stage of a pipeline, which goes round once or twice": (
            config.mesh.pipeline_microbatches is not None or config.mesh.pipeline_repeats > 1
        ),
        f"attention kernel of this platform instead of {config.model.attention}": config.model.attention != "auto",
        "schedule squeezed into the steps run: warm-up of one, decay to twice their number": True,
        f"peak learning rate {PEAK_LR:g}, so that a wrong update shows": config.optim.peak_lr < PEAK_LR,
    }
    return [line for line, applies in left_out.items() if applies]
