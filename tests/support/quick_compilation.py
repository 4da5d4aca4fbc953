"""What XLA is told so that the programs of tests compile in less than half the time: most of what a suite takes."""

import importlib.metadata

JAXLIB = tuple(int(number) for number in importlib.metadata.version("jaxlib").split(".")[:2])
# Programs and their partitioning stay as they are; the code that LLVM makes of them is plainer, and in one piece.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if JAXLIB < (0, 11):  # 0.12 has no such flag, and XLA ends a process that is given one it does not know
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
