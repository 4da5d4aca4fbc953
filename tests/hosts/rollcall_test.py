"""Who is there, over real sockets: several runs on one machine, and messages that name what the user has set."""

import concurrent.futures
import contextlib
import os
import socket
import sys

import launching
import pytest
import runs

from gptjax.errors import UserError
from gptjax.hosts import distributed, rollcall

SLURM = {
    "SLURM_JOB_ID": "5001", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "localhost",
}  # fmt: skip
BY_HAND = {"GPTJAX_NUM_PROCESSES": "2", "GPTJAX_PROCESS_ID": "0"}


@pytest.fixture
def place_of(monkeypatch):
    """place_of(environment) is the Place of a process, which has no other such variables."""

    def place(environment: dict) -> distributed.Place:
        for name in list(os.environ):
            if name.startswith(("SLURM_", "OMPI_", "GPTJAX_", "JAX_COORDINATOR")):
                monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return distributed.find_place(os.environ)

    return place


def roll_call(place, index: int, seconds: float, count: int = 2):
    return rollcall.roll_call(place.coordinator, count, index, seconds, place.words)


def test_steps_of_a_slurm_job_and_jobs_4096_apart_have_ports_of_their_own(place_of):
    changes = [{}, {"SLURM_STEP_ID": "1"}, {"SLURM_STEP_ID": "2"}, {"SLURM_JOB_ID": str(5001 + 4096)}]
    addresses = [place_of(SLURM | change).coordinator for change in changes]
    assert len(set(addresses)) == len(changes)
    ports = [int(address.rpartition(":")[2]) for address in addresses]
    assert all(61440 <= port < 65536 for port in ports)
    assert place_of(SLURM | {"SLURM_PROCID": "1"}).coordinator == addresses[0], "all processes of a step have one"
    assert place_of(SLURM | {"JAX_COORDINATOR_PORT": "1234"}).coordinator == "localhost:1234"


def test_two_job_steps_meet_at_once_on_one_node(place_of):
    places = [place_of(SLURM | {"SLURM_STEP_ID": str(step)}) for step in (0, 1)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(roll_call, place, index, 20) for place in places for index in (0, 1)]
        assert [call.result() for call in calls] == [[socket.gethostname()] * 2] * 4


def test_a_process_of_another_run_that_comes_to_the_port_is_no_second_of_its_number(place_of):
    port = {"JAX_COORDINATOR_PORT": str(runs.free_port())}
    ours, other = place_of(SLURM | port), place_of(SLURM | port | {"SLURM_STEP_ID": "1"})
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        lost = pool.submit(roll_call, other, 1, 0.1)
        first = pool.submit(roll_call, ours, 0, 20)
        with pytest.raises(rollcall.Missing, match="process 0, which coordinates at localhost"):
            lost.result()
        second = pool.submit(roll_call, ours, 1, 20)
        assert first.result() == second.result() == [socket.gethostname()] * 2


@pytest.mark.parametrize(
    "environment,message",
    [
        (SLURM, "port {port} of localhost, which follows from SLURM_JOB_ID=5001, SLURM_STEP_ID=0: Address already in use;"
         " Slurm: set JAX_COORDINATOR_PORT to a free one, as in srun --export=ALL,JAX_COORDINATOR_PORT=PORT."),
        (SLURM | {"JAX_COORDINATOR_PORT": "{port}"}, "the port of JAX_COORDINATOR_PORT={port}: Address already in use; use a"
         " free port."),
        (BY_HAND | {"GPTJAX_COORDINATOR": "localhost:{port}"}, "the port of GPTJAX_COORDINATOR=localhost:{port}: Address"
         " already in use; use a free port."),
        (BY_HAND | {"GPTJAX_COORDINATOR": "localhost:{port}"} | launching.local.LAUNCHED, "port {port}, which"
         " launch/local.py chose: Address already in use; at the next start it chooses another."),
    ],
)  # fmt: skip
def test_a_port_that_is_taken_is_told_by_what_the_user_has_set(place_of, environment, message):
    with socket.socket(socket.AF_INET6) as other:
        wanted = int(place_of(SLURM).coordinator.rpartition(":")[2]) if environment == SLURM else 0
        other.bind(("::", wanted))
        other.listen()
        port = other.getsockname()[1]
        place = place_of({name: value.format(port=port) for name, value in environment.items()})
        with pytest.raises(rollcall.PortTaken) as error:
            roll_call(place, 0, 0.5)
    assert str(error.value) == "process 0 cannot listen on " + message.format(port=port)


def test_a_process_of_an_older_gptjax_which_names_no_run_is_let_in(place_of):
    """That its code is another is said by those who compare the code of all (distributed.check_equal)."""
    place = place_of(BY_HAND | {"GPTJAX_COORDINATOR": f"localhost:{runs.free_port()}"})
    host, _, port = place.coordinator.rpartition(":")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(roll_call, place, 0, 20)
        while not first.done():
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as connection:
                rollcall._send(connection, {"process": 1, "count": 2, "host": "old"})
                rollcall._read_line(connection)
        assert first.result() == [socket.gethostname(), "old"]


@pytest.mark.parametrize("index,count,message", [(0, 2, "by one srun"), (1, 3, "by one srun")])
def test_processes_that_do_not_belong_together_are_told_so_in_words_of_their_cluster(place_of, index, count, message):
    place = place_of(SLURM | {"JAX_COORDINATOR_PORT": str(runs.free_port())})
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(roll_call, place, 0, 20)
        stranger = {"process": index, "count": count, "host": "elsewhere", "run": place.words.run}
        host, _, port = place.coordinator.rpartition(":")
        while not first.done():
            try:
                with socket.create_connection((host, int(port)), timeout=5) as connection:
                    rollcall._send(connection, stranger)
                    rollcall._read_line(connection)
            except OSError:
                pass
        with pytest.raises(UserError, match=message) as error:
            first.result()
    assert "GPTJAX" not in str(error.value)


def test_a_port_that_is_no_number_is_refused_in_one_line(place_of):
    for port in ("here", "²", "0", "65536", "9" * 5000):
        with pytest.raises(UserError, match=f"JAX_COORDINATOR_PORT={port} is not a port; give a free one"):
            place_of(SLURM | {"JAX_COORDINATOR_PORT": port})


def test_launch_local_says_that_it_chose_the_port(tmp_path):
    """So that a port which somebody else took meanwhile is no mistake of the user's."""
    group = launching.local.Group([sys.executable, "-c", "import os; print(os.environ['GPTJAX_LAUNCHED_BY'])"],
                                  [launching.common.environment(**launching.local.LAUNCHED)], 1.0)  # fmt: skip
    assert group.wait() == 0
