"""What XLA is told so that the programs of tests compile in a quarter of the time: most of what a suite takes."""

import importlib.util
import mmap
import pathlib


def knows(flag: str) -> bool:
    """Whether the jaxlib that is installed has an XLA flag. XLA ends a process that is given one it does not know."""
    library = pathlib.Path(importlib.util.find_spec("jaxlib").origin).with_name("libjax_common.so")
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(flag.encode()) >= 0


# Programs and their partitioning stay as they are; only the code that LLVM makes of them is plainer.
WANTED = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_cpu_use_fusion_emitters": "false",  # gone from jaxlib 0.12
}
FLAGS = " ".join(f"--{flag}={value}" for flag, value in WANTED.items() if knows(flag))
