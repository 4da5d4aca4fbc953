"""Rollouts: each row alone, the log-probabilities of trainer and rollout, ends, tools, meshes."""

import functools

import jax
import numpy as np
import pytest
import runs
from places import ROOT

import gptjax
from gptjax.config.fields import Config, TrainConfig
from gptjax.errors import UserError
from gptjax.generation import decoding
from gptjax.generation.engine import Engine, Row
from gptjax.generation.settings import Settings
from gptjax.generation.slots import Slots
from gptjax.parallel import numerics
from gptjax.posttrain import rollouts, sampled
from gptjax.posttrain.sampled import Sampling

GOLDEN = ROOT / "tests" / "golden" / "checkpoints" / "schema2"
PROMPTS = [[3], [1, 4, 1, 5, 9, 2], [2, 6, 5], [8, 8, 8, 8]]
LENGTH, END = 16, 7
SETTINGS = {
    "cool": dict(temperature=0.7),
    "plain": dict(),
    "warm": dict(temperature=1.3),
    "top_k": dict(top_k=9),
    "top_p": dict(top_p=0.9),
    "all": dict(temperature=1.3, top_k=30, top_p=0.9, min_p=0.01, entries=50),
}


@pytest.fixture
def tiny(make_variant):
    return make_variant("gpt2", init_std=0.15)  # one that is not sure of what it says


def drawn(
    tiny, prompts=PROMPTS, *, params=None, max_tokens=10, ends=(END,), settings=(), **options
) -> rollouts.Rollouts:
    sampling = Sampling(max_tokens=max_tokens, **dict(settings))
    options = {"group": 3, "seed": 5, "step": 2, "slots": 5} | options
    params = tiny.params if params is None else params
    return rollouts.sample(params, prompts, graph=tiny.graph, sampling=sampling, ends=ends, length=LENGTH, **options)


@functools.partial(jax.jit, static_argnames=("graph", "config", "sampling"))
def of_trainer(params, batch, *, graph, config, sampling):
    return sampled.token_logprobs(params, batch, graph=graph, config=config, sampling=sampling)


@pytest.mark.parametrize("name", SETTINGS)
def test_log_probabilities_of_a_rollout_are_the_trainers_for_every_setting(tiny, name):
    made = drawn(tiny, settings=SETTINGS[name].items())
    config, sampling = Config(model=tiny.config, train=TrainConfig(steps=1)), Sampling(**SETTINGS[name])
    logprob_BL, _ = of_trainer(
        tiny.params, {"token_BT": made.token_BT}, graph=tiny.graph, config=config, sampling=sampling
    )
    far = rollouts.difference(made.logprob_BL, logprob_BL, made.weight_BL)
    assert far["logprob_gap_max"] < 1e-5 and far["sampler_kl"] < 1e-10
    assert (made.logprob_BL[made.weight_BL > 0] < 0).all() and not made.logprob_BL[made.weight_BL == 0].any()


def test_a_row_draws_the_same_tokens_alone_in_other_company_and_in_another_number_of_slots(tiny):
    together = drawn(tiny, slots=None)
    assert len(set(map(tuple, together.token_BT.tolist()))) == len(together.token_BT)
    for slots in (1, 4):
        for one, other in zip(drawn(tiny, slots=slots), together):
            np.testing.assert_allclose(one, other, atol=1e-5)
    alone = drawn(tiny, PROMPTS[2:3], numbers=[2])
    for one, other in zip(alone, together):
        np.testing.assert_allclose(one, other[6:9], atol=1e-5)
    again = drawn(tiny, PROMPTS[::-1], numbers=[3, 2, 1, 0], group=2)
    np.testing.assert_array_equal(again.token_BT[2:4], together.token_BT[6:8])


def test_a_row_draws_others_with_another_seed_step_prompt_number_or_sample(tiny):
    keys = {(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)}
    assert len({rollouts.row_seed(*key) for key in keys}) == len(keys)
    assert rollouts.row_seed(5, 2, 0, 1) == 9720525705150595032  # as every run has drawn


def test_an_answer_ends_with_its_end_token_or_has_all_tokens_that_there_is_room_for(tiny):
    made = drawn(tiny, ends=(END, 11))
    assert 0 < made.ended_B.sum() < len(made.ended_B)
    for b, (token_T, first, end) in enumerate(zip(made.token_BT, made.prompt_length_B, made.length_B)):
        answer = token_T[first:end]
        assert token_T[:first].tolist() == PROMPTS[b // 3] and not token_T[end:].any()
        assert made.ended_B[b] == (answer[-1] in (END, 11)) and not np.isin(answer[:-1], (END, 11)).any()
        assert made.ended_B[b] or len(answer) == 10
        assert np.flatnonzero(made.weight_BL[b]).tolist() == list(range(first - 1, end - 1))
    short = drawn(tiny, max_tokens=LENGTH - 1, ends=(), overflow="shorten")
    assert not short.ended_B.any() and (short.length_B == LENGTH).all()
    for one, other in zip(drawn(tiny, max_tokens=10, ends=()).token_BT, short.token_BT):
        assert one[: min(np.count_nonzero(one), 11)].tolist() == other[: min(np.count_nonzero(one), 11)].tolist()


def test_at_temperature_0_tokens_are_the_likeliest_and_certain(tiny):
    made = drawn(tiny, settings={"temperature": 0.0}.items(), group=2)
    assert not made.logprob_BL.any() and made.weight_BL.any()
    np.testing.assert_array_equal(made.token_BT[0::2], made.token_BT[1::2])


def test_a_tools_answer_is_no_token_of_the_policys_and_what_follows_is_drawn_as_from_such_a_prompt(tiny):
    """Asked at the end of each turn; until there is no room for its answer."""
    asked, reply = [], [33, 34]

    def respond(token_L):
        asked.append(token_L.tolist())
        return reply if len(asked) % 2 else None

    options = dict(ends=(END, 11, 12, 13, 14), group=4, max_tokens=10)
    made, plain = drawn(tiny, respond=respond, slots=3, **options), drawn(tiny, **options)
    given_B = np.zeros(len(made.token_BT), bool)
    for b, token_T in enumerate(made.token_BT):
        first, end, turn_end = made.prompt_length_B[b], made.length_B[b], plain.length_B[b]
        assert token_T[:turn_end].tolist() == plain.token_BT[b, :turn_end].tolist()
        given = np.flatnonzero(made.weight_BL[b, first - 1 : end - 1] == 0) + first
        given_B[b] = given.size > 0
        if given.size:
            assert token_T[given].tolist() == reply * (given.size // 2) and given[0] == turn_end
            assert not made.logprob_BL[b, given - 1].any()
    assert 0 < given_B.sum() and asked
    config = Config(model=tiny.config, train=TrainConfig(steps=1))
    batch = {"token_BT": made.token_BT}
    logprob_BL, _ = of_trainer(tiny.params, batch, graph=tiny.graph, config=config, sampling=Sampling())
    assert rollouts.difference(made.logprob_BL, logprob_BL, made.weight_BL)["logprob_gap_max"] < 1e-5


def test_a_tools_answer_that_leaves_no_room_ends_the_row_without_it(tiny):
    options = dict(ends=(END, 11, 12, 13, 14), group=4, max_tokens=10)
    made, plain = drawn(tiny, respond=lambda token_L: [33] * 10, **options), drawn(tiny, **options)
    assert plain.ended_B.any() and not made.ended_B.any()
    np.testing.assert_array_equal(made.token_BT, plain.token_BT)
    np.testing.assert_array_equal(made.weight_BL, plain.weight_BL)


def test_prompts_without_room_are_refused_or_their_answers_shortened(tiny):
    assert rollouts.room([[1] * 6, [1] * 7, []], Sampling(max_tokens=10), LENGTH).tolist() == [True, False, False]
    with pytest.raises(UserError, match="1 of 2 prompts leave no room for max_tokens=10 in rows of 16 tokens"):
        drawn(tiny, [[1] * 6, [1] * 7])
    made = drawn(tiny, [[1] * 6, [1] * 15], ends=(), overflow="shorten")
    assert (made.length_B == LENGTH).all() and made.weight_BL.sum(1).tolist() == [10] * 3 + [1] * 3
    for wrong, message in (
        (dict(prompts=[[1] * 16], overflow="shorten"), "a prompt of 16 tokens leaves no room for an answer"),
        (dict(prompts=[[1]], overflow="cut"), "overflow='cut' is none of: refuse, shorten"),
    ):
        with pytest.raises(UserError, match=message):
            drawn(tiny, **wrong)


def test_rows_of_one_prompt_are_read_once_and_draw_as_if_each_had_been_read_alone(tiny, monkeypatch):
    """Bit for bit, also when a row comes later than the others."""
    engine, read = Engine(tiny.graph, tiny.params), []

    def rows():
        return [Row(np.array(PROMPTS[1], np.int32), seed, Settings(max_tokens=6, logprobs=True)) for seed in range(4)]

    def made(groups) -> list:
        slots = Slots(engine, 4, places=LENGTH, logprobs=decoding.DRAWN, penalises=False)
        for group in groups:
            slots.admit(*group)
        while slots.rows:
            slots.step(3)
        return [(row.new, row.logprobs) for group in groups for row in group]

    alone = [pair for row in rows() for pair in made([[row]])]
    prefill = engine.prefill
    monkeypatch.setattr(engine, "prefill", lambda rows, **options: read.append(rows) or prefill(rows, **options))
    a, b, c, d = rows()
    assert made([[a, b, c], [d]]) == alone and len(read) == 1 and len(read[0]) == 1


MESHES = ("fsdp=2", "replica=2,fsdp=2,tensor=2")


@pytest.mark.parametrize("mesh", runs.default_or_slow(MESHES, MESHES[:1]))
def test_rollouts_on_a_mesh_are_those_of_one_device(mesh):
    def of(run):
        options = dict(ends=(3,), length=16, group=2, slots=4, seed=1, step=7)
        prompts = [run.tokens(text) for text in ("the cat", "a", "on ")]
        with numerics.on_mesh(run.mesh):
            return rollouts.sample(
                run.params, prompts, graph=run.graph, sampling=Sampling(top_p=0.95, max_tokens=8), **options
            )

    one, split = of(gptjax.load(GOLDEN)), of(gptjax.load(GOLDEN, mesh=mesh))
    for expected, array in zip(one, split):
        np.testing.assert_allclose(array, expected, atol=2e-5)
