"""How kinds of GPU differ in what their compiler is asked for, as tpu.py has it of TPUs: by a part of JAX's `device_kind`."""

# XLA turns its latency-hiding scheduler on for Hopper and Blackwell by itself, and leaves it off for Ampere: there nearly all
# gathers and scatters of weights then wait, with nothing beside them (GPT-3 1.3B's plan on eight A100 of 80 GB: 0.025 s of a
# step on NVLink, with it 0.004 s).
COMPILER_OPTIONS = {"A100": {"xla_gpu_enable_latency_hiding_scheduler": True}}


def compiler_options(device_kind: str) -> dict[str, bool] | None:
    """Of the train step; None: XLA's own."""
    return next((options for kind, options in COMPILER_OPTIONS.items() if kind in device_kind), None)
