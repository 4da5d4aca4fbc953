"""GPUs that are not here, as XLA:GPU has to be told of them to compile for them: no GPU, driver or CUDA toolkit is needed.

The compiler is JAX's plugin for CUDA, the assembler NVIDIA's ptxas (nvidia-cuda-nvcc): the extra `gpu-plan`.
What it makes here has the memory, the collectives and the schedule of what a GPU would run, but tiles of matrix products
that were never tuned on the device: it is for reading, not for running.
"""

import contextlib
import dataclasses
import importlib.util
import pathlib
import shutil
import typing

from gptjax import hardware

# What a compiler without a device leaves to programs, of device_memory_size (GetSchedulerMemoryLimit of XLA's
# gpu_hlo_schedule.cc). A run has hardware.GPU_MEMORY_FRACTION, so the compiler is told of as much more.
COMPILERS_SHARE = 0.8
INSTALL = "pip install 'gptjax[gpu-plan]'"
CUDNN = 91800  # a version that knows all we ask of attention: JAX asks cuDNN itself, which is not here


@dataclasses.dataclass(frozen=True)
class Target:
    """What XLA's code generation and scheduling read of a GPU: its own xla/backends/gpu/target_config/specs."""

    name: str  # becomes the device_kind
    compute_capability: int
    cores: int
    lanes_per_core: int
    clock_ghz: float
    l2_bytes: int
    shared_bytes_per_core: int
    shared_bytes_per_block: int
    bytes_per_second: int
    memory_bytes: int

    def text(self) -> str:
        """A GpuTargetConfigProto, with the fields that compiling needs."""
        memory = int(self.memory_bytes * hardware.GPU_MEMORY_FRACTION / COMPILERS_SHARE)
        fields = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 48 * 1024,
            "shared_memory_per_core": self.shared_bytes_per_core,
            "shared_memory_per_block_optin": self.shared_bytes_per_block,
            "threads_per_core_limit": 2048,
            "core_count": self.cores,
            "fpus_per_core": self.lanes_per_core,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "registers_per_core_limit": 2**16,
            "registers_per_block_limit": 2**16,
            "memory_bandwidth": self.bytes_per_second,
            "l2_cache_size": self.l2_bytes,
            "clock_rate_ghz": self.clock_ghz,
            "device_memory_size": memory,
        }
        told = " ".join(f"{key}: {value}" for key, value in fields.items())
        capability = f"cuda_compute_capability {{ major: {self.compute_capability} }}"
        return f'gpu_device_info {{ {told} {capability} }} platform_name: "CUDA" device_description_str: "{self.name}"'


_AMPERE = dict(compute_capability=8, cores=108, lanes_per_core=64, clock_ghz=1.41, l2_bytes=41943040,
               shared_bytes_per_core=167936, shared_bytes_per_block=166912)  # fmt: skip
_HOPPER = dict(compute_capability=9, cores=132, lanes_per_core=128, clock_ghz=1.98, l2_bytes=52428800,
               shared_bytes_per_core=233472, shared_bytes_per_block=232448)  # fmt: skip
_BLACKWELL = dict(compute_capability=10, cores=148, lanes_per_core=128, clock_ghz=1.965, l2_bytes=132644864,
                  shared_bytes_per_core=233472, shared_bytes_per_block=232448)  # fmt: skip
TARGETS = {  # by the names of hardware.CHIPS
    "a100-40": Target("NVIDIA A100-SXM4-40GB", bytes_per_second=1555200000000, memory_bytes=42331013120, **_AMPERE),
    "a100-80": Target("NVIDIA A100-SXM4-80GB", bytes_per_second=2039040000000, memory_bytes=85100068864, **_AMPERE),
    "h100": Target("NVIDIA H100 80GB HBM3", bytes_per_second=3352320000000, memory_bytes=84942979072, **_HOPPER),
    "h200": Target("NVIDIA H200", bytes_per_second=4800000000000, memory_bytes=151397597184, **_HOPPER),
    "b200": Target("NVIDIA B200", bytes_per_second=7672320000000, memory_bytes=191514411008, **_BLACKWELL),
}


def missing() -> str | None:
    """What is not installed that compiling for GPUs needs; None where all is there."""
    plugins = importlib.util.find_spec("jax_plugins")
    if plugins is None or importlib.util.find_spec("jax_plugins.xla_cuda13") is None:
        return "jax-cuda13-plugin"
    return None if _ptxas() else "nvidia-cuda-nvcc"


def _ptxas() -> bool:
    """Whether XLA will find the assembler: in NVIDIA's wheel, on the PATH, or where a toolkit is installed."""
    wheel = importlib.util.find_spec("nvidia")
    folders = [pathlib.Path(folder) / "cu13" / "bin" for folder in (wheel.submodule_search_locations if wheel else ())]
    return any((folder / "ptxas").exists() for folder in [*folders, pathlib.Path("/usr/local/cuda/bin")]) or bool(
        shutil.which("ptxas")
    )


def devices(family: str, per_host: int, hosts: int) -> typing.Sequence | None:
    """Descriptions of GPUs to compile for, host by host; None where they cannot be had: see `missing`."""
    if family not in TARGETS or missing():
        return None
    from jax.experimental import topologies

    shape = f"1x{hosts}x{per_host}"  # partitions, hosts, GPUs of a host
    return list(topologies.get_topology_desc("", "cuda", topology=shape, target_config=TARGETS[family].text()).devices)


@contextlib.contextmanager
def with_cudnn():
    """While programs are lowered for GPUs that are not here, JAX is answered for the cuDNN that is not here either."""
    from jax._src.cudnn import fused_attention_stablehlo as fused_attention  # there is no public way

    asks = fused_attention.check_cudnn_version
    fused_attention.check_cudnn_version = lambda: CUDNN
    try:
        yield
    finally:
        fused_attention.check_cudnn_version = asks


def attention_workspace(config, sizes: dict[str, int]) -> float:
    """Bytes that cuDNN's backward pass takes besides its results, on one device: an estimate.

    XLA asks cuDNN for them where there is a device; here the program has none. Its flash attention sums the gradient of the
    queries in float32: [rows, T, heads, head_size] of a microbatch.
    """
    model, train = config.model, config.train
    rows = train.batch_size // (train.microbatches * sizes["replica"] * sizes["fsdp"])
    rows //= config.mesh.pipeline_parts(sizes["stage"])
    return 4.0 * rows * model.context_length * model.n_heads // sizes["tensor"] * model.head_size
