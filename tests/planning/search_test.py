"""Searches over GPU hosts, which need no compiler: what is tried, what is refused, what comes first."""

import pytest
from plan_test import CONFIG

from gptjax.errors import UserError
from gptjax.planning import plan, search, topology


class Silent:
    """A progress line that nobody watches."""

    def message(self, line):
        pass

    update = message

    def close(self):
        pass


def test_factorisations_are_all_the_ways_to_split_the_devices_over_the_axes():
    found = list(search.factorisations(CONFIG.replace(mesh={"fsdp": -1, "tensor": 1}), 16))
    assert len(found) == 15  # four factors of 2 over three axes: 6 choose 2
    for sizes in found:
        assert sizes["replica"] * sizes["fsdp"] * sizes["tensor"] == 16 and sizes["sequence"] == 1
    assert len({tuple(sizes.values()) for sizes in found}) == 15
    more = list(search.factorisations(CONFIG.replace(mesh={"fsdp": -1, "tensor": 1, "sequence": 2}), 16))
    assert len(more) == 35  # an axis that the config uses is tried too


def test_a_search_compares_every_factorisation_and_ranks_what_fits():
    machine = topology.describe("h100:8x2")
    found = search.search(CONFIG.replace(mesh={"fsdp": -1, "tensor": 1}), machine, plan.Options(), 3, Silent())
    assert found["tried"] == 15 * 5 * 5  # 16 = replica x fsdp x tensor; 1, 2, ... 16 microbatches; 5 remat policies
    times = [facts["step_seconds"] for facts in found["compiled"]]
    assert len(times) == 3 and times == sorted(times) and found["refused"] > 0
    assert "estimated to fit" in search.table(found)


def test_what_cannot_fit_is_not_planned():
    huge = CONFIG.replace(model={"d_model": 65536, "n_heads": 512, "n_layers": 64})
    found = search.search(
        huge.replace(mesh={"fsdp": -1, "tensor": 1}), topology.describe("h100:8x1"), plan.Options(), 3, Silent()
    )
    assert found["estimated_to_fit"] == 0 and found["compiled"] == []
    assert "none of the planned candidates fits" in search.table(found)


def test_a_cpu_has_no_rates_to_rank_by():
    with pytest.raises(UserError, match="no published rates"):
        search.search(CONFIG, topology.describe("cpu:4"), plan.Options(), 3, Silent())


def test_hosts_that_the_config_joins_by_fsdp_are_kept_joined_by_it():
    joined = CONFIG.replace(mesh={"fsdp": -1, "tensor": 1, "dcn_fsdp": 2})
    found = search.search(joined, topology.describe("h100:4x2"), plan.Options(), 40, Silent())
    assert found["compiled"] and {facts["mesh"]["fsdp"] % 2 for facts in found["compiled"]} == {0}


def test_where_the_compiler_refuses_what_fits_its_words_are_said_instead_of_more_devices():
    found = search.search(CONFIG.replace(mesh={"fsdp": -1}), topology.describe("h100:4x1"), plan.Options(), 0, Silent())
    refused = search.table(found | {"not_compiled": ["XLA could not compile the step: FAILED_PRECONDITION: why"] * 2})
    assert "2 more were refused: XLA could not compile the step: FAILED_PRECONDITION: why" in refused
    assert "use more devices" not in refused and "use more devices" in search.table(found)
