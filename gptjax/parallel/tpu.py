"""How kinds of TPU differ beside their rates: what their compiler is asked for, and which rows of a slice are rings.

The one table is KINDS, by JAX's `device_kind`. `gptjax plan` describes a slice to libtpu by it and takes its roofline
from it; plans, training and saved executables compile by it.
"""

import dataclasses
import typing

import numpy as np


def cubes(shape: tuple[int, ...]) -> tuple[bool, ...]:
    """Slices are made of cubes of 4 x 4 x 4 chips, and switches close every row; parts of a cube have open rows."""
    return (all(size % 4 == 0 for size in shape),) * len(shape)


def rows_of_a_pod(shape: tuple[int, ...]) -> tuple[bool, ...]:
    """A pod is 16 x 16 chips, and its cables close whole rows and columns."""
    return tuple(size == 16 for size in shape)


@dataclasses.dataclass(frozen=True)
class Kind:
    compiler_options: dict[str, bool | int]  # of the train step
    rings: typing.Callable[[tuple[int, ...]], tuple[bool, ...]]  # chips along each dimension -> which are closed
    source: str


FUSION = "xla_tpu_enable_async_collective_fusion"
FUSED_GATHERS = f"{FUSION}_fuse_all_gather"
# Gathers of weights run beside the matmuls before them; left to itself XLA waits for most of them, or cuts matmuls of
# small models to pieces that wait for HBM (windowed einsums: MFU of the 125M's plan 33%, without 42%).
OVERLAP = {
    FUSION: True,
    f"{FUSION}_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_enable_async_all_gather": True,
    "xla_tpu_megacore_fusion_allow_ags": False,
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000,
}
# For all but v5e libtpu 0.0.50.1 (jax 0.12) refuses fused gathers, which may end in "incorrect results, hang, SDC"
# there; 0.0.42.1 (jax 0.10) takes them without a word.
UNFUSED = OVERLAP | {FUSED_GATHERS: False}
# v5e has no other way to run a gradient's all-reduce beside a matmul. Combined to one at the end of a layer's backward
# pass, as XLA does by itself, all would wait: those of a MB and more stay apart. xla_tpu_async_collective_fusion_fuse_
# multiple_collectives would hide the last of a layer too (docs/speed.md); no public launcher sets it, and nobody ran it.
FUSED = OVERLAP | {
    FUSED_GATHERS: True,
    f"{FUSION}_fuse_all_reduce": True,
    "xla_enable_async_all_reduce": True,
    "xla_jf_crs_combiner_threshold_in_bytes": 1_000_000,
}
# SparseCores carry out collectives while the TensorCore goes on, and scatter gradients over slices of any shape; left
# to the TensorCore of v5p and v6e all gathers wait, and gradients are reduced whole.
OFFLOAD = "xla_tpu_enable_sparse_core_collective_offload"
OFFLOADED = UNFUSED | {
    f"{OFFLOAD}_all_gather": True,
    f"{OFFLOAD}_2d_all_gather": True,
    f"{OFFLOAD}_3d_all_gather": True,
    f"{OFFLOAD}_all_reduce": True,
    f"{OFFLOAD}_reduce_scatter": True,
    f"{OFFLOAD}_nd_reduce_scatter": True,
}

DOCS = "rings: docs.cloud.google.com/tpu/docs/"
REFUSED = "libtpu 0.0.50.1 refuses fused gathers, takes the rest, as 0.0.42.1 does"
SPARSECORES = "SparseCores: programs of libtpu 0.0.42.1 and 0.0.52"
V4 = Kind(UNFUSED, cubes, f"{REFUSED}; {SPARSECORES}, which wait for theirs; {DOCS}v4")
V5E = Kind(FUSED, rows_of_a_pod, "plans of the 125M to 2.7B; it has no SparseCores; rings: MaxText's table of slices")
V5P = Kind(OFFLOADED, cubes, f"{REFUSED}; {SPARSECORES}; {DOCS}v5p")
V6E = Kind(OFFLOADED, rows_of_a_pod, f"{REFUSED}; {SPARSECORES}; rings: MaxText's table of slices")
TPU7X = Kind(UNFUSED, cubes, f"{REFUSED}; SparseCores unasked; rings: not published in so many words, taken as v5p's")
KINDS = {
    "TPU v4": V4,
    "TPU v5 lite": V5E,
    "TPU v5e": V5E,
    "TPU v5": V5P,
    "TPU v5p": V5P,
    "TPU v6 lite": V6E,
    "TPU v6e": V6E,
    "TPU7x": TPU7X,
}


def compiler_options(device_kind: str) -> dict[str, bool | int]:
    """What XLA is asked for when it compiles a train step; nothing for a kind that was never compiled for."""
    return dict(KINDS[device_kind].compiler_options) if device_kind in KINDS else {}


def rings_of(devices) -> list[bool] | None:
    """Which of three dimensions are closed in the slices of these devices; None for a kind that is not known here."""
    if devices[0].device_kind not in KINDS:
        return None
    coordinates_D = np.array([device.coords for device in devices])
    return [bool(closed) for closed in KINDS[devices[0].device_kind].rings(np.ptp(coordinates_D, axis=0) + 1)]
