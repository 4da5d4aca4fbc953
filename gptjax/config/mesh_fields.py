"""The section `mesh` of a config: over which devices a run lies."""

import dataclasses
import typing

from gptjax.config.setting import Shown, setting


@dataclasses.dataclass(frozen=True, repr=False)
class MeshConfig(Shown):
    """Devices of a slice along each axis, one of which may be -1 and uses all remaining devices; and slices (`dcn_*`)."""

    AXES: typing.ClassVar = ("replica", "stage", "fsdp", "sequence", "tensor")  # the last gets neighbouring chips
    DCN_AXES: typing.ClassVar = ("replica", "fsdp")  # those that slices may lie along

    replica: int = setting(1, "devices along replica: data parallel, each holds all parameters", "rounding")
    stage: int = setting(1, "devices along stage: pipeline parallel, each holds some layers", "rounding")
    fsdp: int = setting(-1, "devices along fsdp: data parallel, parameters are sharded", "rounding")
    sequence: int = setting(
        1, "devices along sequence: context parallel, the tokens of a sequence are sharded", "rounding"
    )
    tensor: int = setting(1, "devices along tensor: tensor parallel, heads, MLP and vocabulary are sharded", "rounding")
    dcn_replica: int = setting(-1, "slices along replica; -1: all that dcn_fsdp leaves", "rounding")
    dcn_fsdp: int = setting(1, "slices along fsdp", "rounding")
    pipeline_microbatches: int | None = setting(
        None, "parts of a batch that pass through the stages one after another; None: one for each stage", "rounding"
    )
    pipeline_repeats: int = setting(
        1,
        "times that a part passes through all stages, each of which then holds that many pieces of the model",
        "rounding",
    )
    offload_optimizer: bool = setting(
        False, "whether the optimizer's state waits in the host's pinned memory between updates", "rounding"
    )
    cpu_devices: int = setting(
        1, "JAX devices that a CPU host is split into; one for each core keeps all cores at work", "rounding"
    )

    def pipeline_parts(self, stages: int) -> int:
        """Parts of a batch that go one by one through a pipeline of so many stages; 1 where that is none."""
        return 1 if stages == 1 else self.pipeline_microbatches or stages
