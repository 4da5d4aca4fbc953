"""The batcher: each job's text as it is alone, whatever comes, goes, waits or fails beside it."""

import logging
import random

import batching
import jax
import numpy as np
import pytest
import runs
from batching import TOKENIZER, BrokenEngine, heard, job
from flax import nnx
from places import ROOT

import gptjax
from gptjax.errors import UserError
from gptjax.generation.engine import Row
from gptjax.serve import embedding
from gptjax.serve.batcher import Batcher, BatcherOptions
from gptjax.serve.jobs import Draining, Failed, Full
from gptjax.serve.row import row_of
from gptjax.serve.scheduler import Scheduler, Totals

CONTEXT, CHUNK = 64, 16
SMALL = dict(slots=3, chunk_tokens=CHUNK, prefill_tokens=CHUNK, queue=1000)


@pytest.fixture(scope="module")
def engines():
    return {}


@pytest.fixture
def engine_of(engines, make_variant):
    def of(name: str, **fields):
        key = name, *fields.items()
        if key not in engines:
            engines[key] = batching.engine_of(make_variant(name, context_length=CONTEXT, **fields))
        return engines[key]

    return of


@pytest.fixture
def start():
    """start(engine, **options) is a batcher that works, until the end of the test."""
    started = []

    def of(engine, tokenizer=TOKENIZER, **options):
        started.append(Batcher(engine, tokenizer, BatcherOptions(**SMALL | options)))
        started[-1].start()
        return started[-1]

    yield of
    for batcher in started:
        batcher.stop()


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, TOKENIZER.vocab_size - 1, length).tolist()


def make_random_jobs(count: int, rng: random.Random) -> list:
    """Prompts that begin alike or don't, settings of all kinds; some need programs of their own."""
    stems = [prompt(45, seed) for seed in range(3)]
    return [_random_job(rng, stems) for _ in range(count)]


def _random_job(rng: random.Random, stems):
    ids = rng.choice(stems)[: rng.randint(1, 45)] + prompt(rng.randint(0, 6), rng.randint(0, 50))
    settings = {"max_tokens": rng.choice((1, 2, 5, 9, 17, 70)), "logprobs": rng.random() < 0.7}
    if rng.random() < 0.5:
        options = ({}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.05}, {"temperature": 0.6})
        settings |= {"temperature": 1.0} | rng.choice(options)
    settings |= rng.choice(({}, {}, {"repetition_penalty": 1.4}, {"frequency_penalty": 0.6, "presence_penalty": 0.2}))
    if rng.random() < 0.3:
        settings["stop"] = [TOKENIZER.decode([rng.randrange(64)] * size) for size in (1, 1, 1, 1, 1, 1, 2)]
    fields = {"likeliest": 3} if rng.random() < 0.1 else {"bias": {5: 3.0, 9: -100.0}} if rng.random() < 0.1 else {}
    fields |= {"prompt_scores": True} if rng.random() < 0.1 else {}
    fields |= {"stop_ids": (rng.randrange(64), rng.randrange(64))} if rng.random() < 0.4 else {}
    return job(ids, rng.randrange(2**64), settings, ignore_eot=rng.random() < 0.1, **fields)


def again(one):
    return job(one.prompt_L, one.seed, _as_given(one.settings), **_fields(one))


def _as_given(settings) -> dict:
    return {"max_tokens": settings.max_tokens, "logprobs": settings.logprobs, "stop": settings.stop} | settings.options


def _fields(one) -> dict:
    names = ("stop_ids", "ignore_eot", "bias", "likeliest", "prompt_scores")
    return {name: getattr(one, name) for name in names}


def run_alone(engine, one, tokens: int = 8) -> Row:
    """By Engine.run."""
    settings = type(one.settings)(**_as_given(one.settings) | {"max_tokens": tokens, "logprobs": True})
    ends = {} if one.ignore_eot else {"eot_id": TOKENIZER.eot_id, "stop_ids": one.stop_ids}
    row = Row(one.prompt_L, one.seed, settings, **ends)
    engine.run([row])
    return row


def test_200_jobs_that_come_and_go_each_say_what_they_say_alone(engine_of, start):
    """In the batcher bit for bit, with what is kept of prompts and without; greedy ones by the engine too."""
    engine, rng = engine_of("gpt2"), random.Random(0)
    jobs, batcher = make_random_jobs(200, rng), start(engine, prefix_tokens=160)
    for first in range(0, len(jobs), 20):
        batcher.submit(*jobs[first : first + 20])
        cancelled = jobs[rng.randrange(first + 20)]
        batcher.cancel(cancelled)
        jobs[first].listener.wait()
    for each in jobs:
        each.listener.wait()
    finished = [each for each in jobs if each.listener.ending.reason != "cancelled"]
    assert len(finished) >= 190
    assert {each.listener.ending.reason for each in finished} == {"eot", "stop", "length"}
    assert sum(each.listener.ending.cached_tokens > 0 for each in finished) > 50
    alone = start(engine, slots=3, prefix_tokens=0)
    for each in finished:
        (once,) = heard(alone, again(each))
        assert once.answer == each.listener.answer and once.ending.cached_tokens == 0
    plain = [one for one in finished if one.settings.temperature == 0 and not (one.bias or one.settings.penalties)]
    assert len(plain) > 30
    for each in plain:  # its first tokens: Engine.run has a program for each power of two of them
        row, tokens = run_alone(engine, each, tokens=16), each.listener.tokens[:16]
        assert row.new[: len(tokens)] == tokens and len(tokens) > 0 or row.finished == "eot"
        if each.listener.ending.reason == "eot" and len(tokens) < 16:
            assert (row.new, row.finished) == (tokens, "eot")
        np.testing.assert_allclose(
            row.logprobs[: len(each.listener.logprobs[:16])], each.listener.logprobs[:16], atol=2e-5
        )


@pytest.mark.parametrize("name", runs.default_or_slow(["modern", "gpt3", "lstm"], ["modern", "lstm"]))
def test_other_models_read_prompts_in_chunks_as_the_engine_reads_them_whole(engine_of, start, name):
    """Windows, rotary positions, fewer heads of keys; and a state that goes on through padding."""
    engine = engine_of(name)
    jobs = [job(prompt(40, 1)[:n], n) for n in (40, 33, 7)]
    batcher = start(engine)
    answers = heard(batcher, *jobs) + heard(batcher, *map(again, jobs))
    for each, answer in zip(jobs * 2, answers):
        row = run_alone(engine, each)
        assert row.new == answer.tokens
        np.testing.assert_allclose(row.logprobs, answer.logprobs, atol=2e-5)
    assert [a.answer for a in answers[:3]] == [a.answer for a in answers[3:]]
    assert [a.ending.cached_tokens for a in answers] == [0, 32, 0, 32, 32, 0]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_run_loaded_in_other_dtypes_says_the_same_in_any_company(start, trained, dtype):
    run = gptjax.load(trained, dtype=dtype)
    jobs = [job(prompt(9, n)[:n], n, {"temperature": 1.0, "max_tokens": 6}) for n in range(1, 8)]
    jobs = [job(np.array(each.prompt_L) % run.tokenizer.vocab_size, each.seed, {"temperature": 1.0}) for each in jobs]
    batcher = start(run.engine, run.tokenizer)
    together = [answer.answer for answer in heard(batcher, *jobs)]
    assert together == [heard(batcher, again(each))[0].answer for each in jobs]


@pytest.mark.slow
def test_on_a_mesh_jobs_say_what_they_say_on_one_device(start):
    golden = ROOT / "tests" / "golden" / "checkpoints" / "schema2"
    run, split = gptjax.load(golden), gptjax.load(golden, mesh="fsdp=2,tensor=2")
    texts = ("the cat", "a", "on the mat and ")
    jobs = [job(run.tokens(text), n, {"temperature": n % 2, "max_tokens": 6}) for n, text in enumerate(texts)]
    one, several = start(run.engine, run.tokenizer), start(split.engine, run.tokenizer)
    for here, there in zip(heard(one, *jobs), heard(several, *map(again, jobs))):
        assert here.tokens == there.tokens and here.ending == there.ending
        np.testing.assert_allclose(here.logprobs, there.logprobs, atol=2e-5)
    vectors = [batcher.embed([[1, 2, 3], [4]]).result(60) for batcher in (one, several)]
    np.testing.assert_allclose(*vectors, atol=1e-5)


def test_rows_go_on_while_a_long_prompt_is_read(engine_of):
    engine, options = engine_of("gpt2"), BatcherOptions(**SMALL)
    scheduler = Scheduler(engine, options, CONTEXT, Totals())
    short, long = (job(prompt(n, n), settings={"max_tokens": 50}) for n in (2, 3 * CHUNK + 1))
    for each in (short, long):
        scheduler.admit(row_of(each, TOKENIZER, engine.config, CONTEXT))
    counts = []
    while not long.listener.pieces:
        scheduler.turn(False)
        counts.append(len(short.listener.tokens))
    assert len(counts) == 5 and all(np.diff(counts) >= 1), "a chunk for each turn, and tokens of the other in each"


def test_jobs_that_come_and_go_compile_nothing(engine_of, start, caplog):
    batcher = start(engine_of("gpt2"), warm=True)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        jobs = [job(prompt(n, n), n, {"temperature": n % 2}, stop_ids=(1,) * (n % 3)) for n in (1, 20, 40, 55)]
        heard(batcher, *jobs)
        heard(batcher, job(prompt(55, 55)), job(prompt(50, 55)))
    assert not [record for record in caplog.records if "Compiling" in record.getMessage()]


def test_what_is_kept_of_prompts_is_told_and_changes_no_bit(engine_of, start):
    batcher = start(engine_of("gpt2"), prefix_tokens=3 * CHUNK)
    first, same, longer, shorter, other = (
        heard(batcher, job(ids))[0] for ids in (prompt(40), prompt(40), prompt(40) + [1], prompt(32), prompt(31))
    )
    cached = [each.ending.cached_tokens for each in (first, same, longer, shorter, other)]
    assert cached == [0, 40, 32, 16, 16]  # the last chunk is read again: its logits are not kept
    assert first.answer == same.answer
    heard(batcher, job(prompt(50, 9)))  # three chunks, which are all that is kept
    assert heard(batcher, job(prompt(40)))[0].ending.cached_tokens == 0
    assert batcher.status.prompt_tokens == 40 + 40 + 41 + 32 + 31 + 50 + 40
    assert batcher.status.cached_tokens == sum(cached)


def test_the_likeliest_tokens_and_the_scores_of_a_prompt_are_the_model_s(engine_of, start):
    """In chunks, and of a prompt of which nothing is made."""
    engine, ids = engine_of("gpt2"), prompt(37)
    batcher = start(engine)
    heard(batcher, job(ids))  # which leaves chunks, of which there are no scores
    made, read = heard(
        batcher,
        job(ids, settings={"max_tokens": 5}, likeliest=4, prompt_scores=True, bias={3: 50.0}),
        job(ids, settings={"max_tokens": 5}, likeliest=20, prompt_scores=True, prompt_only=True),
    )
    assert made.tokens == [3] * 5 and read.tokens == [] and read.ending.reason == "length"
    model = nnx.merge(engine.graph, engine.params)
    logprob_LV = np.asarray(jax.nn.log_softmax(model(np.array([ids + made.tokens]))[0]))
    expected = logprob_LV[np.arange(41), (ids + made.tokens)[1:]]
    np.testing.assert_allclose(made.scores.logprobs + tuple(made.logprobs), expected, atol=2e-5)
    assert made.scores.logprobs == read.scores.logprobs and len(read.scores.logprobs) == 36
    for count, places in ((4, made.scores.likeliest + tuple(made.likeliest)), (20, read.scores.likeliest)):
        for logprob_V, pairs in zip(logprob_LV, places, strict=False):
            tokens = np.argsort(-logprob_V[: TOKENIZER.vocab_size])[:count]
            assert [token for token, _ in pairs] == tokens.tolist()
            np.testing.assert_allclose([logprob for _, logprob in pairs], logprob_V[tokens], atol=2e-5)
    assert len(made.likeliest) == 5 and len(read.scores.likeliest) == 36


class Alternating:
    """A constraint: two tokens in turn, then the end."""

    def __init__(self, tokens: tuple[int, ...], count: int, broken_at: int | None = None):
        self.tokens, self.count, self.broken_at, self.taken = tokens, count, broken_at, []

    def allowed(self):
        if self.broken_at == len(self.taken):
            raise KeyError("grammar")
        allowed_V = np.zeros(TOKENIZER.vocab_size, bool)
        is_whole = len(self.taken) == self.count
        allowed_V[TOKENIZER.eot_id if is_whole else self.tokens[len(self.taken) % len(self.tokens)]] = True
        return allowed_V

    def take(self, token):
        self.taken.append(token)


def test_a_constrained_text_conforms_and_the_others_are_as_they_are_without_it(engine_of, start):
    batcher = start(engine_of("gpt2"))
    free = job(prompt(5), 3, {"temperature": 1.0, "max_tokens": 30})
    whole, cut, broken = (
        job(prompt(7), 1, {"temperature": 1.0, "max_tokens": most}, constraint=Alternating((4, 60), 6, broken_at))
        for most, broken_at in ((6, None), (4, None), (9, 2))
    )
    answers = heard(batcher, free, whole, cut, broken)
    assert answers[0].answer == heard(batcher, again(free))[0].answer
    assert answers[1].tokens == [4, 60] * 3 and answers[1].ending.reason == "eot"
    assert answers[2].tokens == [4, 60] * 2 and answers[2].ending.reason == "length"
    assert answers[3].tokens == [4, 60] and answers[3].ending.reason == "failed"
    assert answers[3].ending.error == "the constraint failed: KeyError: 'grammar'"
    assert batcher.status.state == "ready"


def test_a_constrained_answer_may_end_its_turn_where_it_may_end(engine_of, start):
    """By a token that its format ends turns with, which the constraint does not know."""

    class Open(Alternating):
        def allowed(self):
            allowed_V = np.zeros(TOKENIZER.vocab_size, bool)
            allowed_V[[4, TOKENIZER.eot_id] if self.taken else [4]] = True
            return allowed_V

    bias = {TOKENIZER.eot_id: -100.0, 9: 100.0}
    constrained = job(prompt(3), constraint=Open((4,), 0), stop_ids=(9,), bias=bias)
    (answer,) = heard(start(engine_of("gpt2")), constrained)
    assert answer.tokens == [4] and answer.ending.reason == "eot"


def test_pieces_have_whole_characters_and_hold_back_what_may_begin_a_stop_string(engine_of, start):
    """Tokens are bytes here: a character has up to three."""
    engine = engine_of("gpt2", vocab_size=257)
    engine = type(engine)(engine.graph, engine.params)
    tokenizer = gptjax_bytes()
    batcher = start(engine, tokenizer)
    bytes_wanted = "aé一bcé".encode()

    class Spells(Alternating):
        def allowed(self):
            allowed_V = np.zeros(257, bool)
            allowed_V[bytes_wanted[len(self.taken) % len(bytes_wanted)]] = True
            return allowed_V

    whole, stopped, cut = heard(
        batcher,
        job([1], settings={"max_tokens": len(bytes_wanted)}, constraint=Spells((), 0)),
        job([1], settings={"max_tokens": 40, "stop": ("bcx", "cé")}, constraint=Spells((), 0)),
        job([1], settings={"max_tokens": 2}, constraint=Spells((), 0)),
    )
    assert [piece.text for piece in whole.pieces if piece.text] == ["a", "é", "一", "b", "c", "é"]
    assert stopped.text == "aé一b" and stopped.ending.reason == "stop"
    assert stopped.ending.new_tokens == len(bytes_wanted) == len(stopped.tokens)
    assert "c" not in [piece.text for piece in stopped.pieces]
    assert cut.text == "a\ufffd" and cut.ending.reason == "length"


def gptjax_bytes():
    from gptjax.data.tokenizers.simple import ByteTokenizer

    return ByteTokenizer()


def test_a_text_ends_where_the_context_does(engine_of, start):
    full = job(prompt(CONTEXT - 5), settings={"max_tokens": 50}, ignore_eot=True)
    few_places = job(prompt(10), settings={"max_tokens": 50}, ignore_eot=True)
    assert len(heard(start(engine_of("gpt2")), full)[0].tokens) == 5
    assert len(heard(start(engine_of("gpt2"), places=20), few_places)[0].tokens) == 10
    assert full.listener.ending == few_places.listener.ending._replace(new_tokens=5)
    assert full.listener.ending.reason == "length"


def test_a_cancelled_job_ends_within_a_call_and_its_slot_is_free(engine_of, start):
    batcher = start(engine_of("gpt2"), slots=1)
    running, waiting, after = (job(prompt(2), settings={"max_tokens": 60}, ignore_eot=True) for _ in range(3))
    batcher.submit(running, waiting, after)
    running.listener.wait_for_a_piece()
    batcher.cancel(waiting)
    batcher.cancel(running)
    assert waiting.listener.wait().ending.reason == "cancelled" and waiting.listener.pieces == []
    running.listener.wait()
    assert running.listener.ending.reason in ("cancelled", "length")
    assert after.listener.wait().ending.reason == "length" and len(after.listener.tokens) == 60
    batcher.cancel(after)  # has ended: nothing follows
    assert heard(batcher, job(prompt(3)))[0].ending.reason == "length"


def test_a_row_is_cancelled_between_two_tokens_and_while_its_prompt_is_read(engine_of):
    engine = engine_of("gpt2")
    scheduler = Scheduler(engine, BatcherOptions(**SMALL), CONTEXT, Totals())
    short, long = (job(prompt(n, n), settings={"max_tokens": 50}) for n in (2, 40))
    rows = [row_of(each, TOKENIZER, engine.config, CONTEXT) for each in (short, long)]
    for row in rows:
        scheduler.admit(row)
    scheduler.turn(False)
    scheduler.turn(False)  # the long one has been begun
    assert scheduler.free == 1 and len(scheduler.rows) == 2
    tokens = len(short.listener.tokens)
    for row in rows:
        scheduler.cancel(row)
    assert scheduler.free == 3 and scheduler.rows == []
    assert short.listener.ending.reason == long.listener.ending.reason == "cancelled"
    assert short.listener.ending.new_tokens == tokens > 0 == long.listener.ending.new_tokens
    scheduler.admit(row_of(again(long), TOKENIZER, engine.config, CONTEXT))
    while scheduler.rows:
        scheduler.turn(False)


def test_jobs_are_taken_all_or_none_up_to_the_queue_and_none_while_draining(engine_of):
    batcher = Batcher(engine_of("gpt2"), TOKENIZER, BatcherOptions(**SMALL | {"slots": 1, "queue": 2}))
    jobs = [job(prompt(2), n) for n in range(6)]
    batcher.submit(*jobs[:2])
    with pytest.raises(Full, match="2 jobs may wait"):
        batcher.submit(*jobs[2:4])
    with pytest.raises(UserError, match="the prompt has 64 tokens"):
        batcher.submit(jobs[2], job(prompt(CONTEXT)))
    assert batcher.status.waiting == 2
    batcher.start()
    assert batcher.drain(batching.SECONDS) is True
    assert [each.listener.ending.reason for each in jobs[:2]] == ["length"] * 2
    with pytest.raises(Draining):
        batcher.submit(jobs[4])
    with pytest.raises(Draining):
        batcher.embed([[1]])
    assert batcher.status.state == "draining" and batcher.status.running == batcher.status.waiting == 0
    batcher.stop()
    assert all(each.listener.ending is None for each in jobs[2:])


def test_what_is_not_finished_when_the_time_to_drain_is_over_is_cancelled(engine_of, start):
    batcher = start(engine_of("gpt2"), slots=1)
    jobs = [job(prompt(2), n, {"max_tokens": 60}, ignore_eot=True) for n in range(20)]
    batcher.submit(*jobs)
    jobs[0].listener.wait_for_a_piece()
    assert batcher.drain(0) is False
    assert "cancelled" in {each.listener.wait().ending.reason for each in jobs}
    assert batcher.status.running == batcher.status.waiting == 0


def test_stopping_ends_every_job(engine_of, start):
    batcher = start(engine_of("gpt2"), slots=1)
    jobs = [job(prompt(2), n, {"max_tokens": 60}, ignore_eot=True) for n in range(9)]
    batcher.submit(*jobs)
    batcher.stop()
    assert "cancelled" in {each.listener.ending.reason for each in jobs}
    with pytest.raises(Draining):
        batcher.submit(job(prompt(2)))


def broken(engine) -> BrokenEngine:
    return BrokenEngine(engine.graph, engine.params, entries=engine.entries)


def test_an_error_fails_the_jobs_in_flight_and_those_that_wait_are_served(engine_of, start):
    engine = broken(engine_of("gpt2"))
    batcher = start(engine)
    expected = heard(batcher, job(prompt(20)))[0].answer
    for after in (1, 4):  # while rows get their slots, and while tokens are made
        jobs = [job(prompt(20), settings={"max_tokens": 30}, ignore_eot=True) for _ in range(4)]
        engine.after, engine.faults = after, 1
        answers = heard(batcher, *jobs)
        reasons = [each.ending.reason for each in answers]
        assert 1 <= reasons.count("failed") <= 3 and reasons.count("length") == 4 - reasons.count("failed")
        failed = answers[reasons.index("failed")]
        assert failed.ending.error == "RuntimeError: the device is lost"
        assert heard(batcher, job(prompt(20)))[0].answer == expected
        assert batcher.status.state == "ready" and batcher.status.running == 0


def test_an_error_that_comes_again_leaves_no_job_waiting_and_takes_no_more(engine_of, start):
    engine = broken(engine_of("gpt2"))
    batcher = start(engine, slots=1)
    heard(batcher, job(prompt(20)))
    engine.after, engine.faults = 0, 1000
    answers = heard(batcher, *(job(prompt(20), n) for n in range(7)))
    assert {each.ending.reason for each in answers} == {"failed"}
    assert batcher.status.state == "failed" and batcher.status.running == batcher.status.waiting == 0
    with pytest.raises(Failed):
        batcher.submit(job(prompt(2)))
    assert batcher.drain(1) is True


def test_a_listener_that_raises_ends_its_own_job_alone(engine_of, start):
    batcher = start(engine_of("gpt2"), slots=1)
    deaf, other = job(prompt(4)), job(prompt(5))
    deaf.listener = lambda message: 1 / 0
    batcher.submit(deaf, other)
    assert other.listener.wait().answer == heard(batcher, again(other))[0].answer
    assert batcher.status.state == "ready" and batcher.status.running == 0


def test_an_embedding_is_the_mean_of_the_final_activations_whatever_is_embedded_beside_it(engine_of, start):
    engine = engine_of("gpt2")
    batcher, texts = start(engine), [prompt(n, n) for n in (1, 9, 17, CONTEXT, 3, 3, 30, 2, 5, 8, 40, 41, 42, 43, 50)]
    busy = job(prompt(2), settings={"max_tokens": 50})
    batcher.submit(busy)
    vector_ND = batcher.embed(texts).result(batching.SECONDS)
    model = nnx.merge(engine.graph, engine.params)
    padded = np.array([text + [0] * (CONTEXT - len(text)) for text in texts])
    x_NLD = np.asarray(jax.jit(lambda token_BL: model.activations(token_BL)[0])(padded))
    for text, x_LD, vector_D in zip(texts, x_NLD, vector_ND, strict=True):
        mean_D = x_LD[: len(text)].mean(0)
        np.testing.assert_allclose(vector_D, mean_D / np.linalg.norm(mean_D), atol=1e-5)
    assert busy.listener.wait().answer == heard(batcher, again(busy))[0].answer
    for wrong in ([], [[]], [prompt(CONTEXT + 1)], [[65]], [[-1]], [[0.5]]):
        with pytest.raises(UserError, match="embed|vocabulary"):
            batcher.embed(wrong)


def test_an_embedding_that_nobody_waits_for_is_given_up_where_it_is(engine_of):
    engine, request = engine_of("gpt2"), embedding.Request([np.array(prompt(3, n), np.int32) for n in range(20)])
    request.advance(engine)
    assert not request.finished and request.future.cancel(), "8 of 20 are made"
    request.advance(None)  # there is nothing to make them with
    assert request.finished
    request.fail(ValueError("too late"))  # as where the engine fails then


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(prompt=[]), "expected token ids"),
        (dict(prompt=[65]), "prompt: token id 65 is outside the vocabulary; expected 0 to 64"),
        (dict(prompt=[1], bias={-1: 1.0}), "bias: token id -1"),
        (dict(prompt=[1], bias={1: float("inf")}), "not finite"),
        (dict(prompt=[1], stop_ids=(99,)), "stop_ids: token id 99"),
        (dict(prompt=[1], seed=2**64), "seed=18446744073709551616"),
        (dict(prompt=[1], seed=-1), "seed=-1"),
        (dict(prompt=[1], likeliest=21), "likeliest=21 is out of range; expected 0 to 20"),
        (dict(prompt=[1], settings=dict(num_beams=2)), "without beam search"),
        (dict(prompt=[1], constraint=Alternating((1,), 1), ignore_eot=True), "leave one of them out"),
    ],
)
def test_a_job_that_cannot_be_made_is_refused_in_a_line(engine_of, fields, words):
    batcher = Batcher(engine_of("gpt2"), TOKENIZER, BatcherOptions(**SMALL))
    with pytest.raises(UserError, match=words):
        batcher.submit(job(**fields))
    assert batcher.status.waiting == 0


@pytest.mark.parametrize(
    "options", [dict(slots=0), dict(queue=-1), dict(chunk_tokens=48), dict(places=1), dict(prefix_tokens=-1)]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        BatcherOptions(**options)
