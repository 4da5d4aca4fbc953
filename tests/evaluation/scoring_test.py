"""Scores against the logits of the model run row by row, without padding, batches or a mesh."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from gptjax.config.config_file import from_dict
from gptjax.errors import UserError
from gptjax.evaluation import scoring
from gptjax.parallel import meshes

CONTEXT = 64
LENGTHS = [(5, 12), (3, 2), (40, 25), (1, 1), (70, 9), (16, 16)]  # with batch_size=2: two batches, of 64 and of 32


def requests(lengths=LENGTHS, seed=0, vocab=65):
    rng = np.random.default_rng(seed)
    return [scoring.Request(*(rng.integers(0, vocab, n).tolist() for n in pair)) for pair in lengths]


def mesh_of(**sizes):
    sizes = dict(replica=1, stage=1, fsdp=1, sequence=1, tensor=1) | sizes
    config = from_dict({"train": {"steps": 1, "batch_size": 8}, "mesh": sizes})
    return meshes.make_mesh(config, jax.devices()[: int(np.prod(list(sizes.values())))])


def score(tiny, given, mesh=None, **options):
    return scoring.score(tiny.graph, tiny.params, mesh or mesh_of(), given, **{"batch_size": 2} | options)


@functools.cache
def forward(graph):
    return jax.jit(lambda params, token_BL: nnx.merge(graph, params)(token_BL))


def reference(tiny, request):
    """(log-probability of each token of the continuation in float64, whether it is the argmax), of one row alone."""
    n, tokens = len(request.continuation), np.array((*request.context, *request.continuation))[-(CONTEXT + 1) :]
    row = np.full((1, CONTEXT), 7, np.int32)
    row[0, : len(tokens) - 1] = tokens[:-1]
    logit_LV = np.asarray(forward(tiny.graph)(tiny.params, row), np.float64)[0, len(tokens) - 1 - n : len(tokens) - 1]
    log_p_LV = logit_LV - np.log(np.exp(logit_LV).sum(-1, keepdims=True))
    return log_p_LV[np.arange(n), tokens[-n:]], log_p_LV.argmax(-1) == tokens[-n:]


@pytest.mark.parametrize("name", ["gpt1", "gpt2", "gpt3", "modern", "wide_heads"])
def test_scores_are_those_of_the_logits_row_by_row(make_variant, name):
    tiny = make_variant(name, context_length=CONTEXT)
    for request, result in zip(requests(), score(tiny, requests(), batch_size=8)):  # one batch
        log_p, likeliest = reference(tiny, request)
        np.testing.assert_allclose(result.log_probability_L, log_p, atol=2e-5)
        assert result.likeliest_L.tolist() == likeliest.tolist()
        assert result.log_likelihood == pytest.approx(log_p.sum(), abs=1e-4)


@pytest.fixture
def tiny(make_variant):
    return make_variant("gpt2", context_length=CONTEXT)


def same(a, b) -> bool:
    return np.array_equal(a.log_probability_L, b.log_probability_L) and np.array_equal(a.likeliest_L, b.likeliest_L)


def test_the_order_of_requests_and_repeated_ones_change_no_bit(tiny):
    given = requests()
    straight = score(tiny, given)
    order = np.random.default_rng(1).permutation(len(given)).tolist()
    for i, result in zip(order * 2, score(tiny, [given[i] for i in order] * 2)):
        assert same(result, straight[i])


def test_a_row_among_others_scores_as_it_does_alone(tiny):
    given = requests()
    for request, together in zip(given, score(tiny, given)):
        [alone] = score(tiny, [request])
        np.testing.assert_allclose(alone.log_probability_L, together.log_probability_L, atol=2e-5)


def test_a_greedy_continuation_is_known_as_one_and_another_token_is_not(tiny):
    context, continuation = [3, 1, 4], []
    for _ in range(4):
        row = np.zeros((1, CONTEXT), np.int32)
        row[0, : 3 + len(continuation)] = context + continuation
        logit_V = forward(tiny.graph)(tiny.params, row)[0, 2 + len(continuation)]
        continuation.append(int(logit_V.argmax()))
    wrong = [*continuation[:3], (continuation[3] + 1) % 65]
    greedy, other = score(tiny, [scoring.Request(context, continuation), scoring.Request(context, wrong)])
    assert greedy.greedy and not other.greedy
    assert other.likeliest_L.tolist() == [True, True, True, False]


def test_what_is_cut_from_the_left_takes_no_part(tiny):
    [long] = requests([(100, 5)])
    short = scoring.Request(long.context[-60:], long.continuation)  # 65 tokens: 64 inputs
    assert same(*score(tiny, [long, short]))


@pytest.mark.parametrize(
    "sizes", [dict(fsdp=4, tensor=2), dict(replica=2, sequence=2), dict(stage=2, fsdp=2)], ids=lambda s: "x".join(s)
)
def test_on_a_mesh_and_with_the_vocabulary_in_parts_scores_are_the_same(tiny, sizes):
    mesh = mesh_of(**sizes)
    plain = score(tiny, requests())
    for on_mesh, one in zip(score(tiny, requests(), mesh, vocab_chunks=4, batch_size=8), plain):
        np.testing.assert_allclose(on_mesh.log_probability_L, one.log_probability_L, atol=2e-5)
        assert on_mesh.likeliest_L.tolist() == one.likeliest_L.tolist()


def test_batches_have_few_shapes_that_the_mesh_divides_and_no_more_tokens_than_asked():
    shapes = scoring.Shapes(shortest=16, longest=1024, unit=4, tokens=8 * 1024)
    assert shapes.batch(1024, 1000) == (1024, 8)
    assert shapes.batch(513, 3) == (1024, 4)
    assert shapes.batch(512, 1000) == (512, 16)
    assert shapes.batch(3, 9) == (16, 16)
    assert scoring.Shapes(16, 1000, 4, 2000).batch(900, 7) == (1000, 4)  # one row a device even so
    seen = {shapes.batch(length, left) for length in range(1, 1025) for left in (1, 5, 50, 5000)}
    assert all(rows % 4 == 0 and rows * length <= 8 * 1024 for length, rows in seen)
    assert len({length for length, _ in seen}) == 7


def test_stopping_is_heeded_before_the_next_batch(tiny):
    answers = iter([False, True])
    assert score(tiny, requests(), should_stop=lambda: next(answers)) is None
    assert next(answers, None) is None


@pytest.mark.parametrize(
    "request_,message",
    [
        (([], [1]), "0 tokens of context"),
        (([1], []), "0 to score"),
        (([1], [2] * 65), "65 tokens to score are more than model.context_length=64"),
    ],
)
def test_a_request_that_cannot_be_scored_is_refused(tiny, request_, message):
    with pytest.raises(UserError, match=message):
        score(tiny, [scoring.Request(*request_)])
