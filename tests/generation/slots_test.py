"""Slots: texts that begin and end while others go on, each as it is alone."""

import logging

import jax
import numpy as np
import pytest
import runs
from places import ROOT

import gptjax
from gptjax.errors import UserError
from gptjax.generation.engine import Engine, Row
from gptjax.generation.settings import Settings
from gptjax.generation.slots import Slots
from gptjax.parallel import numerics

ROWS = [  # a prompt and settings; the context is 16 tokens
    ([3], dict(temperature=0, max_tokens=40)),  # goes on from its last half, several times
    ([1, 4, 1, 5, 9], dict(top_k=5, temperature=0.7, max_tokens=4)),
    ([2, 6, 5, 3, 5, 8, 9, 7], dict(repetition_penalty=1.3, frequency_penalty=0.5, logprobs=True, max_tokens=25)),
    (list(range(30)), dict(top_p=0.6, max_tokens=9)),  # longer than the context
    ([7] * 15, dict(max_tokens=1)),  # fills it
    ([8, 8], dict(min_p=0.1, presence_penalty=1.0, max_tokens=12, logprobs=True)),
]


def make_rows(eot_id=None) -> list[Row]:
    return [
        Row(np.array(prompt, np.int32), 7 + i, Settings(**settings), eot_id)
        for i, (prompt, settings) in enumerate(ROWS)
    ]


@pytest.fixture(scope="module")
def engines():
    return {}


@pytest.fixture
def engine_of(engines, make_variant):
    def of(name: str, apart: bool = False) -> Engine:
        if (name, apart) not in engines:
            tiny = make_variant(name)
            engines[name, apart] = Engine(tiny.graph, jax.device_put(tiny.params, jax.devices()[0]))
            if not apart:
                engines[name, apart].layers = None
        return engines[name, apart]

    return of


def serve(slots: Slots, rows: list[Row], tokens: int, watch=None) -> None:
    """Until all rows are finished, each admitted as soon as a slot is free."""
    waiting = list(rows)
    while waiting or slots.rows:
        while waiting and slots.free:
            slots.admit(waiting.pop(0))
        slots.step(tokens, watch)


GOLDEN = ROOT / "tests" / "golden" / "checkpoints" / "schema2"
VARIANTS = {"gpt3": False, "gpt3 apart": True, "lstm apart": True, "gpt2": True, "modern": False, "lstm": False}


@pytest.mark.parametrize("name", runs.default_or_slow(VARIANTS, ("gpt3", "lstm apart")))
def test_a_row_that_comes_and_goes_says_what_it_says_alone(engine_of, name):
    engine = engine_of(name.split()[0], VARIANTS[name])
    endless = make_rows()[2]
    engine.run([endless])
    eot_id = endless.new[6]
    alone, together = make_rows(eot_id), make_rows(eot_id)
    for row in alone:
        engine.run([row])
    serve(Slots(engine, 2), together, tokens=3)
    for one, other in zip(alone, together):
        assert (one.new, one.finished) == (other.new, other.finished)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)
        if one.settings.logprobs:
            np.testing.assert_allclose(one.prompt_logprobs, other.prompt_logprobs, atol=2e-5)
    assert {row.finished for row in alone} == {"eot", "length"}


def test_a_slot_keeps_nothing_of_the_row_before_and_its_row_does_not_depend_on_the_others(engine_of):
    """Bit for bit: log-probabilities in a slot that a longer text has filled, beside another, are those in a new one."""
    engine = engine_of("gpt3")
    _, _, fresh, _, _, also_fresh = make_rows()
    serve(Slots(engine, 2), [fresh], tokens=1)
    serve(Slots(engine, 2), [also_fresh], tokens=1)
    long, short, after, _, _, last = make_rows()
    serve(Slots(engine, 2), [long, short, after, last], tokens=3)
    assert len(long.new) == 40 and len(short.new) == 4
    for one, other in ((fresh, after), (also_fresh, last)):
        assert one.new == other.new and len(one.new) > 5
        np.testing.assert_array_equal(one.logprobs, other.logprobs)


def test_rows_that_come_and_go_compile_nothing(engine_of, caplog):
    slots, rows = Slots(engine_of("gpt3"), 2), make_rows()
    serve(slots, rows[2:4], tokens=3)  # a short prompt and a long one, with and without log-probabilities
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        serve(slots, make_rows(), tokens=5)
        assert not [record for record in caplog.records if "Compiling" in record.getMessage()]
        jax.jit(lambda x: x + 1)(np.float32(1))
        assert [record for record in caplog.records if "Compiling" in record.getMessage()]


@pytest.mark.slow
def test_slots_on_a_mesh_are_those_of_one_device_and_compile_nothing_as_rows_come_and_go(caplog):
    """Parameters split, rows on other devices than their prefill."""
    run = gptjax.load(GOLDEN)
    alone = [Row(run.tokens(text), seed, Settings(max_tokens=9)) for seed, text in enumerate(("the cat", "a", "on "))]
    run.engine.run(alone)
    split = gptjax.load(GOLDEN, mesh="replica=2,fsdp=2,tensor=2")
    rows = [Row(row.prompt, row.seed, row.settings) for row in alone]
    again = [Row(row.prompt, row.seed, row.settings) for row in alone]
    with numerics.on_mesh(split.mesh):
        slots = Slots(split.engine, 2)
        serve(slots, rows, tokens=2)
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            serve(slots, again, tokens=1)
    assert [row.new for row in rows] == [row.new for row in again] == [row.new for row in alone]
    assert not [record for record in caplog.records if "Compiling" in record.getMessage()]


def test_rows_are_ended_from_outside_and_leave_their_slots_while_others_go_on(engine_of):
    engine = engine_of("gpt3")
    long, _, watched, _, _, other = make_rows()
    alone = make_rows()[5]
    engine.run([alone])
    slots = Slots(engine, 3)
    for row in (long, watched, other):
        slots.admit(row)
    assert slots.free == 0 and slots.rows == [long, watched, other]
    stepped = slots.step(5, watch=lambda row, new: ("stop", 2) if row is watched else None)
    assert stepped == [long, watched, other] and slots.rows == [long, other]
    assert watched.finished == "stop" and len(watched.new) == len(watched.logprobs) == 2
    slots.cancel(long)
    assert long.finished == "cancelled" and len(long.new) == 5 and slots.free == 2
    while slots.rows:
        slots.step()
    assert other.new == alone.new and slots.step() == []
    with pytest.raises(UserError, match="the prompt is empty"):
        slots.admit(Row(np.zeros(0, np.int32), 0))
    assert slots.free == 3
