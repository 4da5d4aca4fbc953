"""MaxText's train step for a GPT-3 of docs/speed.md, compiled by its own `train_compile` and read as `gptjax plan` reads ours.

    python3.12 -m venv maxtext && . maxtext/bin/activate
    pip install 'maxtext[tpu]==0.2.5' ml-collections && pip install --no-deps -e .
    python docs/compare_maxtext.py gpt3_1_3b [--flags=gptjax] [remat_policy=full ...]

Both steps then come from one libtpu, and one reader prices both schedules, so that what differs is the step. The model is
MaxText's own GPT-3 block with the sizes, the batch and the chips of configs/NAME.py. --flags=none (the default), `maxtext`
(those that its benchmarks set for v5e) or `gptjax` (those of gptjax/parallel/tpu.py). Further arguments are MaxText's own.
Prints one line of JSON. Minutes of compilation; nothing is run on a chip.
"""

import argparse
import json
import pathlib
import sys
import tempfile

from gptjax.planning import topology

ROOT = pathlib.Path(__file__).resolve().parents[1]
SAME = (
    "dataset_type=synthetic enable_checkpointing=false skip_jax_distributed_system=true enable_dropout=false"
    " model_name=gpt3-6b override_model_config=true max_target_length=2048 trainable_position_size=2048"
    " vocab_size=50304 head_dim=128 attention=flash opt_type=adamw compile_topology_num_slices=1 run_name=compared"
)
SIZES = {  # config: its topology here, and what MaxText is told; remat and microbatches are the fastest that were tried
    "gpt3_1_3b": (
        "v5e:8x8",
        "base_emb_dim=2048 base_num_query_heads=16 base_num_kv_heads=16 base_mlp_dim=8192 base_num_decoder_layers=24"
        " compile_topology=v5e-64 per_device_batch_size=8 remat_policy=save_dot_with_context_except_mlp",
    ),
    "gpt3_6_7b": (
        "v5p:4x4x4",
        "base_emb_dim=4096 base_num_query_heads=32 base_num_kv_heads=32 base_mlp_dim=16384 base_num_decoder_layers=32"
        " compile_topology=v5p-128 per_device_batch_size=4 gradient_accumulation_steps=4 remat_policy=minimal",
    ),
}
MAXTEXT_V5E = (  # benchmarks/xla_flags_library.py of MaxText: DATA_PARALLEL_OVERLAP + CF_FOR_ALL_GATHER
    "enable_data_parallel_all_reduce_opt",
    "data_parallel_opt_different_sized_ops",
    "enable_async_collective_fusion",
    "enable_async_collective_fusion_fuse_all_gather",
    "enable_async_collective_fusion_multiple_steps",
    "overlap_compute_collective_tc",
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SIZES)
    parser.add_argument("--flags", choices=("none", "maxtext", "gptjax"), default="none")
    args, overrides = parser.parse_known_args(arguments)
    name, told = SIZES[args.name]
    topology.set_environment(name)  # before JAX is imported
    with tempfile.TemporaryDirectory() as folder:
        own = [f"base_output_directory={folder}", f"compile_xla_flags={' '.join(flags(args.flags, name))}"]
        compiled, mesh = compiled_by_maxtext([*f"{SAME} {told}".split(), *own, *overrides])
    print(
        json.dumps(
            {"name": args.name, "flags": args.flags, "overrides": overrides} | read(args.name, name, compiled, mesh)
        )
    )
    return 0


def flags(whose: str, topology_name: str) -> list[str]:
    """Those of the command line that MaxText takes, `--xla_...=...`."""
    if whose == "none":
        return []
    if whose == "maxtext":
        return [*(f"--xla_tpu_{flag}=true" for flag in MAXTEXT_V5E), "--xla_enable_async_all_gather=true"]
    from gptjax import hardware
    from gptjax.parallel import tpu

    options = tpu.compiler_options(hardware.CHIPS[topology_name.partition(":")[0]].device_kind)
    return [f"--{name}={str(value).lower()}" for name, value in options.items()]


def compiled_by_maxtext(arguments: list[str]):
    """(the compiled train step, its mesh): what MaxText's command prints a summary of."""
    import maxtext
    from maxtext.trainers.pre_train import train_compile

    kept, compiles = [], train_compile.jit_and_compile

    def keeping(*args, **options):
        kept.append((compiles(*args, **options), args[3]))
        return kept[-1][0]

    train_compile.jit_and_compile = keeping
    train_compile.main(
        ["train_compile", str(pathlib.Path(maxtext.__file__).parent / "configs" / "base.yml"), *arguments]
    )
    return kept[-1]


def read(name: str, topology_name: str, compiled, mesh) -> dict:
    """What `gptjax plan` would say of the step."""
    import jax

    from gptjax import flops
    from gptjax.config import config_file
    from gptjax.planning import hlo, info, plan, roofline

    config = info.resolved(config_file.load_config(str(ROOT / "configs" / f"{name}.py")))
    machine = topology.describe(topology_name).arrange(mesh)
    line = roofline.play(hlo.parse(compiled.as_text()), machine, dict(mesh.shape))
    peak = machine.chip.flops_per_second * machine.num_chips
    per_token = flops.flops_per_token(config.model)["6n_attn_full"]
    memory = compiled.memory_analysis()
    return {
        "jax": jax.__version__,
        "step_seconds": line.seconds,
        "mfu": flops.mfu(config.tokens_per_step / line.seconds, per_token, peak),
        **{key: getattr(line, key) for key in plan.ROOFLINE_KEYS},
        "hbm_traffic_bytes": line.hbm_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
