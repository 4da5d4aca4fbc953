#!/usr/bin/env bash
# jax 0.10.2 (jax-cuda13-pjrt 0.10.2): compiled for a GPU that is only described, a program forgets that its optimizer
# state is to be in the host's memory (memory_kind="pinned_host").
#
# jax.experimental.topologies compiles for devices that are not there, so that one can ask memory_analysis() whether a
# step fits. The step here keeps a state of 4 MiB in the host's memory, fetches it, updates it and puts it back.
#
# Expected: what a described TPU gives: the state is counted as 4 MiB of host memory, in and out, and the compiled
# step's shardings say pinned_host. Or an error, if the description has no such memory.
# Seen: for the described GPU there is neither. The lowered program has no mark of the kind, the state is counted as
# 4 MiB of the GPU's memory, in and out, and the shardings have no memory kind. The described GPU lists no
# memories at all. So the plan of a step with an offloaded state is that of one without, too large by the whole state.
#
# Exits 0 while this holds, 1 when jax behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 jax-cuda13-pjrt==0.10.2 nvidia-cuda-nvcc==13.5.37 libtpu==0.0.42
cat >"$folder/offload.py" <<'PY'
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
"""
MIB = 2**20


def compiled_for(devices):
    """MiB in and out on the device and on the host, the state's memory kinds, and whether the program has a mark of them."""
    mesh = Mesh(np.array(devices[:1]), ("data",))
    on_device = NamedSharding(mesh, PartitionSpec())
    on_host = NamedSharding(mesh, PartitionSpec(), memory_kind="pinned_host")
    state = jax.ShapeDtypeStruct((MIB,), jnp.float32, sharding=on_host)
    gradient = jax.ShapeDtypeStruct((MIB,), jnp.float32, sharding=on_device)

    def step(state, gradient):
        return jax.device_put(0.9 * jax.device_put(state, on_device) + gradient, on_host)

    lowered = jax.jit(step, out_shardings=on_host).lower(state, gradient)
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    of_device = (memory.argument_size_in_bytes // MIB, memory.output_size_in_bytes // MIB)
    of_host = (memory.host_argument_size_in_bytes // MIB, memory.host_output_size_in_bytes // MIB)
    kinds = (compiled.input_shardings[0][0].memory_kind, compiled.output_shardings.memory_kind)
    return of_device, of_host, kinds, "pinned_host" in lowered.as_text()


found = {}
for name, topology in {
    "TPU v5e": topologies.get_topology_desc("v5e:2x2", "tpu"),
    "GPU H100": topologies.get_topology_desc("", "cuda", topology="1x1x1", target_config=H100),
}.items():
    of_device, of_host, kinds, marked = found[name] = compiled_for(topology.devices)
    print(f"{name}, memories listed: {[memory.kind for memory in topology.devices[0].addressable_memories()]}")
    print(f"  MiB in and out: of the device {of_device}, of the host {of_host}")
    print(f"  the state's memory kind in and out: {kinds}; pinned_host in the lowered program: {marked}")
tpu = found["TPU v5e"] == ((4, 0), (4, 4), ("pinned_host", "pinned_host"), True)
sys.exit(0 if tpu and found["GPU H100"] == ((8, 4), (0, 0), (None, None), False) else 1)
PY
# Without a TPU, libtpu would ask the cloud's metadata server and warn of it.
JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 "$folder/venv/bin/python" -W ignore "$folder/offload.py" 2>"$folder/log" ||
    { status=$?; tail -n 3 "$folder/log" >&2; exit "$status"; }
