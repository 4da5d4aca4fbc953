"""How a command starts: JAX as all commands use it, and one process where more would do harm."""

import ctypes
import glob
import importlib.metadata
import importlib.util
import os
import pathlib
import pkgutil
import sys

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

    skip_absent_accelerators()
    if jax.config.jax_platforms == "cpu" or not _plugins():
        keep_freed_memory()
    numerics.set_for_process()
    absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax warns of its own defaults, and logs what it also raises

    given = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if config is not None and config.mesh.cpu_devices > 1 and not given:
        jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)
    if not keep_programs:
        jax.config.update("jax_enable_compilation_cache", False)
    elif not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/gptjax/xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def keep_freed_memory() -> None:
    """Has glibc keep what is freed for what is allocated next. XLA:CPU frees the temporary arrays of a program after each
    call: left to itself, glibc gives them back to the system, which then clears and maps every page anew, in a seventh of
    the CPU time of a step of six layers of width 384. In this process, memory in use stays at its peak.

    Nothing is changed by another C library, or where the environment says what glibc does. mallopt's numbers: malloc.h.
    """
    chosen = [name for name in os.environ if name == "GLIBC_TUNABLES" or name.startswith("MALLOC_")]
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or chosen:
        return
    mallopt(M_MMAP_MAX, 0)  # large arrays have no mapping of their own, which goes when they do
    mallopt(M_TRIM_THRESHOLD, -1)  # never
    mallopt(M_ARENA_MAX, 1)  # arenas of other threads would map large arrays


M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def skip_absent_accelerators() -> None:
    """Has JAX go straight to the CPU where plugins of TPUs or NVIDIA GPUs are installed and there is neither: JAX would try them,
    and print errors that look fatal (E0000 ... unexpected worker hostname; a traceback of a missing cuDNN) before it takes
    the CPU all the same. `gptjax plan` needs these plugins on machines without accelerators.

    Nothing is changed where JAX_PLATFORMS says what to use, where a TPU or a GPU is there in any sense, also one whose plugin is
    missing (JAX says so, but not where it was told to take the CPU), or where JAX has a plugin of another accelerator.
    """
    import jax

    plugins = _plugins()
    if plugins and plugins <= {"tpu", "cuda"} and not (jax.config.jax_platforms or _has_tpu() or _has_nvidia()):
        jax.config.update("jax_platforms", "cpu")


def _plugins() -> set[str]:
    """Of the accelerators that JAX may find, by where it looks itself: tpu, cuda, and other plugins by their names."""
    names = {entry.name for entry in importlib.metadata.entry_points(group="jax_plugins")}
    if namespace := importlib.util.find_spec("jax_plugins"):
        names |= {module.name for module in pkgutil.iter_modules(namespace.submodule_search_locations)}
    plugins = {"cuda" if name.startswith("xla_cuda") else name for name in names}
    return plugins | ({"tpu"} if importlib.util.find_spec("libtpu") else set())


def _has_tpu() -> bool:
    from gptjax.hosts import distributed

    return distributed.on_tpu_vm(os.environ) or bool(glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*"))


def _has_nvidia() -> bool:
    """Whether there is a GPU of NVIDIA's, also one whose driver is missing: JAX has to say so then."""
    files = [*glob.glob("/dev/nvidia*"), *glob.glob("/dev/nvhost*"), *glob.glob("/dev/dxg")]  # Jetson; Windows' Linux
    vendors = (pathlib.Path(file).read_text().strip() for file in glob.glob("/sys/bus/pci/devices/*/vendor"))
    return bool(files) or NVIDIA in vendors


NVIDIA = "0x10de"  # the vendor's number on the PCI bus


def refuse_several(command: str) -> None:
    """Raises UserError if this is one of several processes that a launcher started."""
    for name in ("GPTJAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        if os.environ.get(name, "1") != "1":
            raise UserError(f"gptjax {command} runs in one process, but {name}={os.environ[name]}; start it once.")
