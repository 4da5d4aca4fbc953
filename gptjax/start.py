"""How a command starts: JAX as all commands use it, and one process where more would do harm."""

import glob
import importlib.metadata
import importlib.util
import os

from gptjax.errors import UserError


def start_jax(config=None, keep_programs: bool = True) -> None:
    """Compiled programs are kept between processes, so that a second start does not compile. JAX takes nearly all
    of a GPU's memory, as `gptjax plan` counts on, unless the environment says otherwise."""
    from gptjax import hardware

    if not any(name in os.environ for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")):
        os.environ["XLA_CLIENT_MEM_FRACTION"] = str(hardware.GPU_MEMORY_FRACTION)  # XLA refuses to be told by both

    import absl.logging
    import jax

    from gptjax.parallel import numerics

    skip_absent_tpu()
    numerics.set_for_process()
    absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax warns of its own defaults, and logs what it also raises

    given = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if config is not None and config.mesh.cpu_devices > 1 and not given:
        jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)
    if not keep_programs:
        jax.config.update("jax_enable_compilation_cache", False)
    elif not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/gptjax/xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def skip_absent_tpu() -> None:
    """Has JAX go straight to the CPU where libtpu is installed and there is no TPU: JAX would try it, and libtpu prints errors
    that look fatal (E0000 ... unexpected worker hostname) before the CPU is taken all the same.

    Nothing is changed where JAX_PLATFORMS says what to use, where JAX finds a TPU on the bus (it has then asked for it by name,
    so that its errors are raised), where a device file of one is there, or where the plugin of a GPU is installed.
    """
    import jax

    from gptjax.hosts import distributed

    tpu_files = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    if jax.config.jax_platforms or distributed.on_tpu_vm(os.environ) or tpu_files or _other_plugins():
        return
    if importlib.util.find_spec("libtpu") is not None:
        jax.config.update("jax_platforms", "cpu")


def _other_plugins() -> bool:
    """Whether JAX may find another accelerator: as it looks for plugins itself."""
    return importlib.util.find_spec("jax_plugins") is not None or bool(
        importlib.metadata.entry_points(group="jax_plugins")
    )


def refuse_several(command: str) -> None:
    """Raises UserError if this is one of several processes that a launcher started."""
    for name in ("GPTJAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        if os.environ.get(name, "1") != "1":
            raise UserError(f"gptjax {command} runs in one process, but {name}={os.environ[name]}; start it once.")
