"""What a study file declares, and the runs it stands for. No JAX: a study is planned on any machine."""

import dataclasses
import typing


@dataclasses.dataclass(frozen=True)
class Branch:
    """A run that goes on from another one's checkpoint."""

    trunk: str  # name of the run
    step: int


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a study."""

    name: str  # such as "w64-C1e+12-seed0"
    stage: str  # tune | trunk | grid | target, in this order
    factors: dict[str, typing.Any]  # size, budget, seed, learning_rate ...: what the study varies, as JSON
    config: typing.Any  # Config; None: awaits what the stage "tune" finds
    branch: Branch | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """A base config and the rules that turn it into runs."""

    base: typing.Any  # a ConfigDict, as get_config() returns one
