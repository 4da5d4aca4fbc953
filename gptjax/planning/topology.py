"""Machines by name, without the machine: `v5p:8x8x8` is 512 TPU v5p, `h100:8x16` is 16 hosts of 8 H100, `cpu:8`.

A TPU topology comes from libtpu, which describes and compiles for any slice on any x86 Linux host. Its chips form a
torus; a dimension is a ring only where the slice's cables close it (`tpu.KINDS`). libtpu is told so: by itself it takes
every row for an open one. GPUs of a host stand behind a switch; XLA:GPU compiles for them where it is installed (`gpus`).
"""

import dataclasses
import difflib
import functools
import math
import os
import re
import typing

import numpy as np

from gptjax import hardware
from gptjax.config.extras import library
from gptjax.errors import UserError, paragraph
from gptjax.parallel import tpu
from gptjax.planning import gpus

TPU_ENVIRONMENT = {  # what libtpu would otherwise ask of a metadata server that is not there
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no device that two processes could quarrel about
    "JAX_PLATFORMS": "cpu",
}
GPUS_PER_HOST = 8
MOST_CPU_DEVICES = 512  # all in this one process, with threads of their own
ON_CHIP_LINKS = 6  # tpu7x: its two devices talk six times as fast as over a link of the torus (its Cloud TPU page)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices and where they stand, in the order of a mesh's devices once `arrange` was called."""

    name: str
    family: str  # a key of hardware.CHIPS, or cpu
    shape: tuple[int, ...]  # chips along each dimension of a slice; GPUs of a host and hosts
    num_slices: int
    devices: typing.Sequence | None  # None: cannot be compiled for here
    place_D: np.ndarray  # [devices, dims + 1]: coordinates, then the device on its chip
    slice_D: np.ndarray  # [devices]: slice, or host of GPUs

    @property
    def chip(self) -> hardware.Chip | None:
        return hardware.CHIPS.get(self.family)

    @property
    def platform(self) -> str:
        return "cpu" if self.family == "cpu" else "tpu" if self.chip.dims else "gpu"

    @property
    def usable_bytes(self) -> float | None:
        """Memory of a device that programs may fill; None where it is not published."""
        if self.chip is None:
            return None
        whole = self.chip.hbm_bytes / self.chip.devices_per_chip
        return whole * hardware.GPU_MEMORY_FRACTION if self.platform == "gpu" else whole

    @property
    def num_devices(self) -> int:
        return len(self.slice_D)

    @property
    def num_chips(self) -> int:
        return self.num_devices // (self.chip.devices_per_chip if self.chip else 1)

    @property
    def local_link(self) -> str:
        return {"tpu": "ICI", "gpu": "NVLink", "cpu": "memory"}[self.platform]

    @property
    def far_link(self) -> str:
        return "network" if self.platform == "gpu" else "DCN"

    def is_ring(self, dim: int) -> bool:
        """Whether cables close a dimension of a slice to a ring."""
        return self.rings[dim]

    @property
    def rings(self) -> tuple[bool, ...]:
        """Of each dimension of a TPU slice, whether it is closed."""
        return tpu.KINDS[self.chip.device_kind].rings(self.shape)

    def arrange(self, mesh) -> "Topology":
        """The same with devices in the order of a mesh."""
        places = _gpu_places if self.platform == "gpu" else functools.partial(_places, dims=len(self.shape))
        place_D, slice_D = places(mesh.devices.flat)
        return dataclasses.replace(self, place_D=place_D, slice_D=slice_D)

    def reorder(self, order_D: np.ndarray) -> "Topology":
        """The same with devices in another order, of which there are only indices."""
        return dataclasses.replace(self, place_D=self.place_D[order_D], slice_D=self.slice_D[order_D])


def set_environment(name: str, num_slices: int = 1) -> None:
    """What JAX must find in its environment when it is imported to describe this topology: a CPU, and for `cpu:N` as
    many devices; for a TPU nothing that asks a metadata server."""
    family, _, size = name.partition(":")
    os.environ["JAX_PLATFORMS"] = "cpu"
    if family == "cpu" and re.fullmatch(r"\d+(x\d+)*", size):
        count = math.prod(int(n) for n in size.split("x")) * num_slices
        flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}".strip()
    elif family in hardware.CHIPS and hardware.CHIPS[family].dims:
        os.environ.update(TPU_ENVIRONMENT)


def describe(name: str, num_slices: int = 1) -> Topology:
    """The topology of a name. Raises UserError: an unknown family, a shape libtpu does not know, libtpu missing."""
    family, shape = parse(name, num_slices)
    if family == "cpu":
        return _cpu(name, shape, num_slices)
    return (_tpu if hardware.CHIPS[family].dims else _gpu)(name, family, shape, num_slices)


def device_count(name: str, num_slices: int = 1) -> int:
    """JAX devices of a topology, by its name alone: whether libtpu knows the slice is not asked. Raises UserError."""
    family, shape = parse(name, num_slices)
    each = 1 if family == "cpu" else hardware.CHIPS[family].devices_per_chip
    return each * math.prod(shape) * num_slices


def parse(name: str, num_slices: int = 1) -> tuple[str, tuple[int, ...]]:
    """(family, shape) of a name. Raises UserError: no topology has this name."""
    family, colon, size = name.partition(":")
    if family != "cpu" and family not in hardware.CHIPS:
        near = difflib.get_close_matches(family, [*hardware.CHIPS, "cpu"], n=3, cutoff=0.3)
        raise UserError(
            f"--topology={name}: {family!r} is not known; nearest: {', '.join(near) or 'none'};"
            f" there are {', '.join(hardware.CHIPS)} and cpu."
        )
    if not colon or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise UserError(f"--topology={name}: expected {family}:SIZE, as in {_example(family)}.")
    shape = tuple(int(n) for n in size.split("x"))
    if family != "cpu":
        _check_shape(name, family, shape, num_slices)
    return family, shape


def _check_shape(name: str, family: str, shape: tuple[int, ...], num_slices: int) -> None:
    if dims := hardware.CHIPS[family].dims:
        if len(shape) != dims:
            raise UserError(f"--topology={name}: {family} slices are given as in --topology={_example(family)}.")
        return
    if num_slices != 1:
        raise UserError(f"--num_slices={num_slices} is for TPUs; give GPU hosts as --topology={family}:8xHOSTS.")
    if len(shape) > 2 or shape[0] > GPUS_PER_HOST:
        raise UserError(f"--topology={name}: expected {_example(family)}, at most {GPUS_PER_HOST} GPUs a host.")


def _example(family: str) -> str:
    if family == "cpu":
        return "cpu:8"
    return f"{family}:" + {0: "8x16 (8 GPUs a host, 16 hosts)", 2: "8x8", 3: "4x4x4"}[hardware.CHIPS[family].dims]


def _cpu(name: str, shape: tuple[int, ...], num_slices: int) -> Topology:
    import jax

    count = math.prod(shape) * num_slices
    if count > MOST_CPU_DEVICES:
        raise UserError(
            f"--topology={name} with --num_slices={num_slices} is {count} CPU devices in one process;"
            f" use at most {MOST_CPU_DEVICES}."
        )
    devices = jax.devices()
    if devices[0].platform != "cpu" or len(devices) < count:
        raise UserError(
            f"--topology={name}: JAX was started with {len(devices)} {devices[0].platform} devices, not {count};"
            f" run gptjax plan in a process of its own, or with"
            f" XLA_FLAGS=--xla_force_host_platform_device_count={count}."
        )
    indices = np.arange(count)
    return Topology(name, "cpu", shape, num_slices, devices[:count], indices[:, None], np.zeros(count, int))


def _gpu(name: str, family: str, shape: tuple[int, ...], num_slices: int) -> Topology:
    per_host, hosts = (*shape, 1)[:2]
    index = np.arange(per_host * hosts)
    place_D = np.stack([index % per_host, np.zeros_like(index)], axis=1)
    return Topology(name, family, shape, 1, gpus.devices(family, per_host, hosts), place_D, index // per_host)


def _tpu(name: str, family: str, shape: tuple[int, ...], num_slices: int) -> Topology:
    os.environ.update({key: value for key, value in TPU_ENVIRONMENT.items() if key not in os.environ})  # libtpu's own
    library("libtpu", f"--topology={name}")
    from jax.experimental import topologies

    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **libtpu_options(family, shape, num_slices)
        )
    except Exception as error:  # libtpu's own complaint
        raise UserError(
            f"--topology={name} with {num_slices} slices is not known to libtpu: {paragraph(error)}"
        ) from error
    place_D, slice_D = _places(description.devices, len(shape))
    devices = hardware.CHIPS[family].devices_per_chip * math.prod(shape) * num_slices
    if len(slice_D) != devices:
        raise UserError(f"libtpu describes {name} x {num_slices} as {len(slice_D)} devices, expected {devices}.")
    return Topology(name, family, shape, num_slices, list(description.devices), place_D, slice_D)


def libtpu_options(family: str, shape: tuple[int, ...], num_slices: int) -> dict:
    """What libtpu has to be told of a slice beside its name."""
    rings = tpu.KINDS[hardware.CHIPS[family].device_kind].rings
    options = {"wrap": rings((*shape, 1)[:3])}  # of three dimensions, also where the chips lie in two
    if num_slices > 1:
        options["num_slices"] = num_slices
    if family == "v4":  # as Cloud TPU runs it: the two cores of a chip are one device
        options["chip_config_name"] = "megacore"
    return options


def _gpu_places(devices) -> tuple[np.ndarray, np.ndarray]:
    """Of descriptions, whose coordinates are (partition, host, GPU of the host)."""
    coordinates = np.array([device.coords for device in devices])
    return np.stack([coordinates[:, 2], np.zeros(len(devices), int)], axis=1), coordinates[:, 1]


def _places(devices, dims: int) -> tuple[np.ndarray, np.ndarray]:
    places, slices = [], []
    for index, device in enumerate(devices):
        coords = tuple(getattr(device, "coords", None) or (index,))[:dims]
        places.append((*coords, getattr(device, "core_on_chip", 0) or 0))
        slices.append(getattr(device, "slice_index", 0) or 0)
    return np.array(places), np.array(slices)


@dataclasses.dataclass(frozen=True)
class Path:
    """How the devices of a group reach each other."""

    local_size: int  # devices of the group in one slice or host
    slices: int  # slices or hosts that it spans
    bandwidth: float  # bytes per second into one device over local links, one ring pass over all dimensions
    widest: int  # devices along its longest dimension
    dims: frozenset[int]  # dimensions used; the links that other traffic over them would share


def path(topology: Topology, group: np.ndarray) -> Path:
    """Of the devices at these positions of the mesh. A device's share of its chip's links counts."""
    chip = topology.chip
    slices = np.unique(topology.slice_D[group])
    local = group[topology.slice_D[group] == slices[0]]
    place = topology.place_D[local]
    if topology.platform == "gpu":
        return Path(
            len(local), len(slices), chip.link_bandwidth, len(local), frozenset((0,)) if len(local) > 1 else frozenset()
        )
    link = chip.link_bandwidth / chip.devices_per_chip
    bandwidth, dims, widest = 0.0, set(), 1
    for dim in range(place.shape[1]):
        positions = np.unique(place[:, dim])
        if len(positions) == 1:
            continue
        dims.add(dim)
        widest = max(widest, len(positions))
        if dim == place.shape[1] - 1:
            bandwidth += ON_CHIP_LINKS * chip.link_bandwidth
            continue
        closed = len(positions) == topology.shape[dim] and topology.is_ring(dim)
        density = len(positions) / (positions.max() - positions.min() + 1)  # others share the links between
        bandwidth += link * (2 if closed else 1) * (1.0 if closed else density)
    return Path(len(local), len(slices), bandwidth, widest, frozenset(dims))


def seconds(topology: Topology, kind: str, payload: float, group: np.ndarray) -> tuple[float, float]:
    """(over local links, over the network between slices or hosts) of a collective of `payload` bytes.

    payload: bytes of the whole array, before a scatter or after a gather. Rings: a gather or a scatter moves
    (n - 1) / n of it into each device, an all-reduce is both; across slices each device first has 1 / local of it.
    """
    if len(group) < 2:
        return 0.0, 0.0
    way = path(topology, group)
    passes = 2 if kind == "all-reduce" else 1
    local = far = 0.0
    if way.local_size > 1:
        local = passes * payload * (way.local_size - 1) / way.local_size / way.bandwidth
        if kind == "all-to-all" and topology.platform == "tpu":  # half of it crosses the middle of the longest ring
            local = max(local, payload * way.widest / 8 / (way.bandwidth / 2 / max(len(way.dims), 1)))
        if kind == "collective-permute":
            local = payload / (topology.chip.link_bandwidth / topology.chip.devices_per_chip)
    if way.slices > 1:
        network = topology.chip.network_bandwidth / topology.chip.devices_per_chip
        share = payload if kind == "collective-permute" else payload / way.local_size * (way.slices - 1) / way.slices
        far = passes * share / network
    return local, far
