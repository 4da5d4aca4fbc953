"""Several processes as one run: where this one stands, by the environment, and the start of all of them.

    GPTJAX_COORDINATOR, GPTJAX_NUM_PROCESSES, GPTJAX_PROCESS_ID     set by launchers; GPTJAX_LOCAL_DEVICE_IDS besides
    Cloud TPU, Slurm (srun), Open MPI (mpirun)                      found as jax finds them
    nothing of these                                                a process alone, which pays for none of this

GPTJAX_START_SECONDS (default 50) is how long the processes wait for each other; GPTJAX_COMPILE_SECONDS (default 3600) how
long for one that still compiles (compiling.py).
"""

import collections
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import sys

from gptjax.config import bounds
from gptjax.errors import UserError
from gptjax.hosts import rollcall
from gptjax.hosts.coordination import Alone, PeerLost, seconds_of
from gptjax.hosts.peers import HEARTBEAT_SECONDS, Peers
from gptjax.storage import code

NAMES = ("GPTJAX_COORDINATOR", "GPTJAX_NUM_PROCESSES", "GPTJAX_PROCESS_ID")
START_SECONDS = 50.0


@dataclasses.dataclass(frozen=True)
class Place:
    coordinator: str  # host:port of process 0
    count: int
    index: int
    local_device_ids: list[int] | None  # None: all devices of the host
    words: rollcall.Words  # of who says so
    launched_by: str | None = None  # a launcher, which chooses another port at its next start


def start() -> Alone | Peers:
    """Joins the run's other processes; before any device is touched. Raises UserError, or PeerLost if one is missing."""
    place = find_place(os.environ)
    if place is None or place.count == 1:
        return Alone()
    try:
        hosts = rollcall.roll_call(place.coordinator, place.count, place.index, _start_seconds(), place.words)
    except rollcall.Missing as error:
        raise PeerLost(str(error)) from error
    except rollcall.PortTaken as error:
        if place.launched_by is None:
            raise
        raise PeerLost(str(error)) from error
    import jax

    from gptjax.hosts import compiling

    compiling.seconds()  # a wrong one is said now
    # SIGTERM is ours: jax's preemption service would take it from Python, knows no Ctrl-C and no evaluation.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        place.coordinator,
        place.count,
        place.index,
        place.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=30,  # all are there: the roll call said so
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=30,
    )
    return Peers(place.coordinator, place.index, hosts)


def find_place(environ) -> Place | None:
    """Where the environment puts this process; None: alone. Raises UserError for one that is half set or impossible."""
    if any(name in environ for name in (*NAMES, "GPTJAX_LOCAL_DEVICE_IDS")):
        return _given(environ)
    if _integer(environ, "OMPI_COMM_WORLD_SIZE", 1) > 1 and "OMPI_MCA_orte_hnp_uri" not in environ:
        raise UserError(
            "this Open MPI does not tell where process 0 runs (it sets no OMPI_MCA_orte_hnp_uri);"
            f" set {', '.join(NAMES)} on every process."
        )
    return _detected(environ)


def _given(environ) -> Place:
    missing = [name for name in NAMES if not environ.get(name)]
    if missing:
        given = [name for name in (*NAMES, "GPTJAX_LOCAL_DEVICE_IDS") if environ.get(name)]
        raise UserError(f"{', '.join(given) or 'none'} set, but not {', '.join(missing)}; set all three, or none.")
    coordinator, count, index = environ[NAMES[0]], _integer(environ, NAMES[1]), _integer(environ, NAMES[2])
    host, _, port = coordinator.rpartition(":")
    if not host or not _is_port(port):
        raise UserError(f"GPTJAX_COORDINATOR={coordinator} is not HOST:PORT; give the address of process 0.")
    if count < 1 or not 0 <= index < count:
        raise UserError(
            f"GPTJAX_PROCESS_ID={index} is not one of GPTJAX_NUM_PROCESSES={count} processes; they are numbered from 0."
        )
    launcher = environ.get("GPTJAX_LAUNCHED_BY")
    words = rollcall.Words(
        port=f"the port of GPTJAX_COORDINATOR={coordinator}"
        if launcher is None
        else f"port {port}, which {launcher} chose",
        other_port="use a free port" if launcher is None else "at the next start it chooses another",
        same_count="give all the same GPTJAX_NUM_PROCESSES",
        own_index="give each a GPTJAX_PROCESS_ID of its own",
    )
    return Place(coordinator, count, index, _device_ids(environ), words, launcher)


def _integer(environ, name: str, default: int | None = None) -> int:
    """Raises UserError for what is no number, and KeyError for what is missing without a default."""
    try:
        return int(environ[name] if default is None else environ.get(name, default))
    except ValueError as error:
        raise UserError(f"{name}={environ[name]} is not a whole number.") from error


def _device_ids(environ) -> list[int] | None:
    text = environ.get("GPTJAX_LOCAL_DEVICE_IDS")
    if not text:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"GPTJAX_LOCAL_DEVICE_IDS={text} is not a list of device numbers such as 0,1.") from error


def _detected(environ) -> Place | None:
    """By jax's own cluster detection, asked only where there is a cluster: it looks for metadata servers."""
    mpi = _integer(environ, "OMPI_COMM_WORLD_SIZE", 1) > 1
    tasks = _integer(environ, "SLURM_STEP_NUM_TASKS", 1)  # salloc's interactive step has one, whatever the job has
    slurm = tasks > 1 and "SLURM_STEP_NODELIST" in environ
    job_tasks = environ.get("SLURM_NTASKS", "1")
    if job_tasks != "1" and not slurm and not mpi:
        print(f"gptjax: SLURM_NTASKS={job_tasks}, but not started by srun: training in one process", file=sys.stderr)
    if not slurm and not mpi and not on_tpu_vm(environ):
        return None
    from jax._src import clusters

    _check_port(environ.get("JAX_COORDINATOR_PORT"))
    ids, count = (_slurm_device_ids(environ), tasks) if slurm else (None, None)
    try:
        address, count, index, ids = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, count, None, ids, None, round(_start_seconds())
        )
    except (ValueError, IndexError, AttributeError) as error:  # jax parses them as they are meant to be
        raise UserError(
            f"the cluster's environment variables are not as expected: {error}; set {', '.join(NAMES)} on every process."
        ) from error
    if address is None or count in (None, 1):
        return None
    cluster = _SLURM if slurm else _OPEN_MPI if mpi else _CLOUD_TPU
    return Place(cluster.address(address, environ), count, index, ids, cluster.words(address, environ))


def _is_port(text: str) -> bool:
    return 0 < (bounds.whole_number(text) or 0) < 65536


def _check_port(text: str | None) -> None:
    """Raises UserError for one that is none."""
    if text is not None and not _is_port(text):
        raise UserError(f"JAX_COORDINATOR_PORT={text} is not a port; give a free one, such as {FIRST_PORT}, or none.")


@dataclasses.dataclass(frozen=True)
class _Cluster:
    """One of those that jax detects, and how its port comes about."""

    name: str
    variables: tuple[str, ...]  # that tell one run from another; () where only one can be
    export: str  # how a variable is given to all processes
    start: str  # how they are started

    def address(self, detected: str, environ) -> str:
        """HOST:PORT of process 0. jax takes the port from the job's number alone, modulo 4096: two steps of one job, or
        two jobs on a node, would have the same."""
        if not self.variables or "JAX_COORDINATOR_PORT" in environ:  # which jax has read
            return detected
        host, _, _ = detected.rpartition(":")
        return f"{host}:{FIRST_PORT + int(hashlib.sha256(self._run(environ).encode()).hexdigest(), 16) % PORTS}"

    def _run(self, environ) -> str:
        return ", ".join(f"{name}={environ.get(name, '')}" for name in self.variables)

    def words(self, detected: str, environ) -> rollcall.Words:
        host, _, port = self.address(detected, environ).rpartition(":")
        given = environ.get("JAX_COORDINATOR_PORT")
        why = f"which follows from {self._run(environ)}" if self.variables else f"where processes of {self.name} meet"
        return rollcall.Words(
            port=f"port {port} of {host}, {why}" if given is None else f"the port of JAX_COORDINATOR_PORT={given}",
            other_port="use a free port"
            if given
            else f"{self.name}: set JAX_COORDINATOR_PORT to a free one, {self.export}",
            same_count=f"{self.name}: start all of them {self.start}",
            own_index=f"{self.name}: start all of them {self.start}",
            run=self._run(environ),
        )


FIRST_PORT, PORTS = 65536 - 4096, 4096  # above the ports that Linux gives to clients
_SLURM = _Cluster(
    "Slurm", ("SLURM_JOB_ID", "SLURM_STEP_ID"), "as in srun --export=ALL,JAX_COORDINATOR_PORT=PORT", "by one srun"
)
_OPEN_MPI = _Cluster(
    "Open MPI", ("OMPI_MCA_orte_hnp_uri",), "as in mpirun -x JAX_COORDINATOR_PORT=PORT", "by one mpirun"
)
_CLOUD_TPU = _Cluster("Cloud TPU", (), "on every host, or stop the run that uses this TPU", "on every host, once")


def _slurm_device_ids(environ) -> list[int] | None:
    """All GPUs of the host where it runs one process; jax would give that process the first one only."""
    one_a_node = environ.get("SLURM_STEP_NUM_TASKS") == environ.get("SLURM_STEP_NUM_NODES")
    gpus = environ.get("SLURM_GPUS_ON_NODE", "")
    return list(range(int(gpus))) if one_a_node and gpus.isdigit() else None


def on_tpu_vm(environ) -> bool:
    """Whether JAX found libtpu, and a TPU on the bus of this host."""
    if environ.get("JAX_PLATFORMS", "tpu").find("tpu") < 0:
        return False
    import jax  # noqa: F401  sets what is read in the next line
    from jax._src import cloud_tpu_init

    return cloud_tpu_init.running_in_cloud_tpu_vm


def _start_seconds() -> float:
    return seconds_of("GPTJAX_START_SECONDS", START_SECONDS)


# ---- one run, one config, one code


def facts(config, workdir: str, allowed_changes: tuple[str, ...], origin=None) -> dict[str, dict[str, str]]:
    """What has to be equal in every process: {"config": {key: value}, "code": {file: hash}, "packages": {name: version}}.

    The code is hashed as it lies there, so that a changed file differs from its revision.
    """
    fields = {f"{section}.{k}": repr(v) for section, values in config.to_dict().items() for k, v in values.items()}
    flags = {"--workdir": workdir, "--allow_change": ",".join(allowed_changes), "--branch_from": str(origin)}
    return {
        "config": fields | flags,
        "code": {f"gptjax/{name}": file_hash[:16] for name, file_hash in code.hashes().items()},
        "packages": _packages(),
    }


def _packages() -> dict[str, str]:
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {name: found[name] for name in sorted(found, key=str)} | {"python": platform.python_version()}


def check_equal(
    peers, facts: dict[str, dict[str, str]], seconds: float | None = START_SECONDS, alive=lambda: None
) -> None:
    """Raises UserError that names every process whose facts are not those of the most, and what differs in them.

    seconds: for the others to come here; None: as long as they live, while alive is called again and again.
    """
    if peers.count == 1:
        return
    hashes = {kind: hashlib.sha256(json.dumps(values).encode()).hexdigest() for kind, values in facts.items()}
    peers.publish(f"facts/{'+'.join(facts)}/{peers.index}", json.dumps(facts))
    rows = peers.gather("hashes", hashes, seconds, alive)
    differences = "" if rows is None else _differences(peers, facts, rows)
    if differences := peers.tell("verdict", differences, seconds, alive):
        raise UserError(differences)


def _differences(peers, facts: dict, rows: list[dict]) -> str:
    @functools.cache
    def of(index: int) -> dict:
        return json.loads(peers.read(f"facts/{'+'.join(facts)}/{index}"))

    messages = []
    for kind in facts:
        [(most, _)] = collections.Counter(row[kind] for row in rows).most_common(1)
        reference = [row[kind] for row in rows].index(most)
        for index, row in enumerate(rows):
            if row[kind] != most:
                changed = _changed(of(reference)[kind], of(index)[kind])
                messages.append(f"{peers.name(index)} has a different {kind} from {peers.name(reference)}: {changed}")
    if len(messages) > 8:
        messages[8:] = [f"and {len(messages) - 8} more"]
    return "; ".join(messages) + "; start all of them alike." if messages else ""


def _changed(reference: dict, other: dict) -> str:
    keys = [key for key in reference | other if reference.get(key) != other.get(key)]
    shown = [f"{key} ({reference.get(key)} -> {other.get(key)})" for key in keys[:6]]
    return ", ".join(shown) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")


def device_lines(peers) -> list[str]:
    """One line for each host process, with its devices."""
    import jax

    lines = []
    for index in range(peers.count):
        devices = [d for d in jax.devices() if d.process_index == index]
        kinds = collections.Counter(d.device_kind for d in devices)
        shown = ", ".join(f"{n} x {kind}" for kind, n in kinds.items())
        lines.append(f"host       {peers.name(index)}: {shown}, ids {devices[0].id}-{devices[-1].id}")
    return lines
