"""What a device can do: peak dense bfloat16 FLOP/s and HBM bytes by JAX's `device_kind`, or measured.

A device is what `jax.devices()` lists. TPU v2, v3 and 7x list each of a chip's two TensorCores as a device of its
own (jax.experimental.pallas.tpu.ChipVersion), so these stand with half of their chip's published numbers.
"""

import dataclasses
import functools
import resource
import time

TERA = 10**12
GIB = 2**30
GPU_MEMORY_FRACTION = 0.95  # that JAX takes at its start; the rest is CUDA's and NCCL's. JAX's own default is 0.75


@dataclasses.dataclass(frozen=True)
class Peak:
    flops_per_second: float  # dense bfloat16
    hbm_bytes: int


@dataclasses.dataclass(frozen=True)
class Chip:
    """What is published of a chip as a part of a machine. Bandwidths are bytes per second, one way."""

    device_kind: str  # JAX's name of a device: whole for a TPU, a part of it for a GPU
    peak: Peak  # of a device
    hbm_bandwidth: float  # of the chip
    dims: int  # of the torus; 0: all the chips of a host stand behind one switch
    link_bandwidth: float  # of one torus link; of all a GPU's links to the switch
    network_bandwidth: float  # of the chip's share of its host's network, between slices or hosts
    source: str
    devices_per_chip: int = 1

    @property
    def flops_per_second(self) -> float:
        return self.peak.flops_per_second * self.devices_per_chip

    @property
    def hbm_bytes(self) -> int:
        return self.peak.hbm_bytes * self.devices_per_chip


GIGA = 10**9
CLOUD = "docs.cloud.google.com/tpu/docs/"
# The chips that `gptjax plan` knows by name; to add one, add an entry (a TPU needs one of tpu.KINDS too).
# TPU: rates from Google Cloud TPU documentation, the "system architecture" page of each version, which prints both
# directions of all the links of a chip together (4 links in two dimensions, 6 in three), and the data center network in
# bits per second per chip, or per pod. GPU: NVIDIA's data sheets, which print bfloat16 with 2:4 sparsity from Hopper on
# (half of that is dense), and both directions of NVLink; the network is that of a DGX, one adapter per GPU.
CHIPS = {
    "v4": Chip(
        "TPU v4",
        Peak(275 * TERA, 32 * GIB),
        1228 * GIGA,
        3,
        50 * GIGA,
        6.25 * GIGA,
        CLOUD + "v4; network not published: taken as v5p's",
    ),
    "v5e": Chip("TPU v5 lite", Peak(197 * TERA, 16 * GIB), 819 * GIGA, 2, 50 * GIGA, 3.125 * GIGA, CLOUD + "v5e"),
    "v5p": Chip("TPU v5", Peak(459 * TERA, 95 * GIB), 2765 * GIGA, 3, 100 * GIGA, 6.25 * GIGA, CLOUD + "v5p"),
    "v6e": Chip("TPU v6 lite", Peak(918 * TERA, 32 * GIB), 1638 * GIGA, 2, 100 * GIGA, 12.5 * GIGA, CLOUD + "v6e"),
    "tpu7x": Chip(
        "TPU7x",
        Peak(2307 * TERA / 2, 96 * GIB),
        7380 * GIGA,
        3,
        100 * GIGA,
        12.5 * GIGA,
        CLOUD + "tpu7x",
        devices_per_chip=2,
    ),
    "h100": Chip(
        "H100",
        Peak(989 * TERA, 80 * GIB),
        3350 * GIGA,
        0,
        450 * GIGA,
        50 * GIGA,
        "NVIDIA H100 SXM data sheet, DGX H100",
    ),
    "h200": Chip(
        "H200",
        Peak(989 * TERA, 141 * GIB),
        4800 * GIGA,
        0,
        450 * GIGA,
        50 * GIGA,
        "NVIDIA H200 SXM data sheet, DGX H200",
    ),
    "a100-40": Chip(
        "A100-SXM4-40GB",
        Peak(312 * TERA, 40 * GIB),
        1555 * GIGA,
        0,
        300 * GIGA,
        25 * GIGA,
        "NVIDIA A100 data sheet, DGX A100",
    ),
    "a100-80": Chip(
        "A100", Peak(312 * TERA, 80 * GIB), 2039 * GIGA, 0, 300 * GIGA, 25 * GIGA, "NVIDIA A100 data sheet, DGX A100"
    ),
    "b200": Chip(
        "B200",
        Peak(2250 * TERA, 180 * GIB),
        7700 * GIGA,
        0,
        900 * GIGA,
        50 * GIGA,
        "NVIDIA HGX B200 and DGX B200 data sheets",
    ),
}

# Devices beside those: other names of theirs, and chips whose links nobody needs here, since runs are only timed on them.
# v2 from JAX's own table (jax/_src/pallas/mosaic/tpu_info.py).
OTHER_TPUS = {
    "TPU v2": Peak(46 * TERA / 2, 8 * GIB),
    "TPU v3": Peak(123 * TERA / 2, 16 * GIB),
    "TPU v5e": CHIPS["v5e"].peak,
    "TPU v5p": CHIPS["v5p"].peak,
    "TPU v6e": CHIPS["v6e"].peak,
}
OTHER_GPUS = {
    "A100-PCIE-40GB": Peak(312 * TERA, 40 * GIB),
    "H100 PCIe": Peak(756 * TERA, 80 * GIB),
    "H100 NVL": Peak(835 * TERA, 94 * GIB),
    "GH200 480GB": Peak(989 * TERA, 96 * GIB),
    "H200 NVL": Peak(835 * TERA, 141 * GIB),
    "GB200": Peak(2500 * TERA, 186 * GIB),
}


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of one device; None for a device that is not in the tables."""
    peak = _find(device_kind)
    return peak and peak.flops_per_second


def hbm_bytes(device_kind: str) -> int | None:
    """Bytes of device memory; None for a device that is not in the tables."""
    peak = _find(device_kind)
    return peak and peak.hbm_bytes


def _find(device_kind: str) -> Peak | None:
    if "MIG" in device_kind:  # a slice of a GPU goes by the name of the whole
        return None
    tpus = OTHER_TPUS | {chip.device_kind: chip.peak for chip in CHIPS.values() if chip.dims}
    gpus = OTHER_GPUS | {chip.device_kind: chip.peak for chip in CHIPS.values() if not chip.dims}
    named = max((name for name in gpus if name in device_kind), key=len, default=None)  # "H100 PCIe" before "H100"
    return tpus.get(device_kind) or gpus.get(named)


def peak_of(device, dtype: str) -> tuple[float | None, str]:
    """FLOP/s that MFU is a fraction of, of one device, and where the number is from; None: MFU is left out.

    A CPU has none: no data sheet counts for it, and a timed matmul is no ceiling where others use the cores, too (it varied
    2.6-fold from start to start, and MFU reached 117%).
    """
    if peak := peak_flops(device.device_kind):
        return peak, f"published for {device.device_kind}"
    if device.platform == "cpu":
        return None, "no peak is published for a CPU"
    return measure_matmul_flops(dtype), "measured here, a plain matmul"


@functools.cache  # a process asks once for each run it prepares
def measure_matmul_flops(dtype: str, size: int = 8192, products: int = 16) -> float:
    """FLOP/s of square matmuls on the default device: the yardstick of an accelerator that is not in the tables.

    Each product feeds the next, so that none can be skipped or overlapped. The first call is compilation; the fastest
    of the others counts, since a peak is what the machine can do undisturbed.
    """
    import jax  # tables alone must not start a device

    x, w = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    w = w / size**0.5  # products keep the scale of x

    @jax.jit
    def chain(x):
        return jax.lax.fori_loop(0, products, lambda _, y: y @ w, x)

    x = chain(x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        x = chain(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 * products / min(seconds)


def memory_in_use(devices) -> int:
    """Peak bytes in use on the fullest of these devices; of this process where devices do not tell, as on a CPU."""
    stats = [device.memory_stats() or {} for device in devices]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return max(peaks) if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
