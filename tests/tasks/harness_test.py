"""Answers to lm-evaluation-harness: against its own Hugging Face backend on exported models, and its conventions by hand."""

import dataclasses
import json

import numpy as np
import pytest
from places import ROOT

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

import asked  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402

from gptjax.data.tokenizers.simple import CharTokenizer  # noqa: E402
from gptjax.errors import UserError  # noqa: E402
from gptjax.tasks import harness, task_files  # noqa: E402

GOLDEN = json.loads((ROOT / "tests" / "golden" / "lm_eval" / "answers.json").read_text())


@pytest.fixture(scope="module")
def loaded():
    return task_files.load(task_files.select(asked.SPECS))


def difference(ours: dict, theirs: dict) -> float:
    """The largest of likelihoods and metrics, of those above one relative to them; all else has to be equal."""
    assert ours.keys() == theirs.keys()
    pairs = []
    for task in ours:
        assert ours[task]["metrics"].keys() == theirs[task]["metrics"].keys()
        pairs += [(value, theirs[task]["metrics"][name]) for name, value in ours[task]["metrics"].items()]
        for answer, expected in zip(ours[task]["answers"], theirs[task]["answers"], strict=True):
            if isinstance(expected, list | tuple):
                assert answer[1] == expected[1]
                pairs.append((answer[0], expected[0]))
            elif isinstance(expected, str):
                assert answer == expected
            else:
                pairs.append((answer, expected))
    a, b = np.array(pairs).T
    return float((np.abs(a - b) / np.maximum(1, np.abs(b))).max())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "gpt2_bytes")) for name in GOLDEN]
)
def test_answers_and_metrics_are_those_of_the_hugging_face_backend(loaded, name):
    assert difference(asked.answers(harness.GptjaxLM(asked.make_run(name)), loaded), GOLDEN[name]) < 1e-4


def test_the_hugging_face_backend_itself_agrees_on_an_exported_model(loaded, tmp_path):
    pytest.importorskip("torch", reason="its answers are in golden/lm_eval too")
    pytest.importorskip("accelerate")
    theirs = asked.answers(asked.hf_backend("gpt2_bytes", tmp_path), loaded)
    assert difference(theirs, GOLDEN["gpt2_bytes"]) < 1e-5
    assert difference(asked.answers(harness.GptjaxLM(asked.make_run("gpt2_bytes")), loaded), theirs) < 1e-4


@pytest.fixture(scope="module")
def lm():
    return harness.GptjaxLM(asked.make_run("gpt2_bytes"))


def ask(lm, kind: str, *arguments):
    """The answers to requests of one kind, as lm-eval asks them."""
    requests = [Instance(kind, {}, given, 0, metadata=("the_task", 0, 1)) for given in arguments]
    return getattr(lm, kind)(requests)


def test_spaces_at_the_end_of_a_context_belong_to_what_follows(lm):
    moved, written, apart = ask(lm, "loglikelihood", ("To be ", "or"), ("To be", " or"), ("To be", "or"))
    assert moved == written != apart


def test_a_text_after_nothing_is_scored_after_end_of_text_as_a_rolling_one_is(lm):
    [(after_nothing, _)] = ask(lm, "loglikelihood", ("", "To be"))
    [(after_spaces, _)] = ask(lm, "loglikelihood", ("  ", "To be"))
    assert after_nothing == pytest.approx(ask(lm, "loglikelihood_rolling", ("To be",))[0], abs=1e-5)
    assert after_spaces == pytest.approx(ask(lm, "loglikelihood_rolling", ("  To be",))[0], abs=1e-5)


def test_a_long_text_is_scored_in_windows_each_token_once_with_a_full_context_at_the_end(lm):
    text = "".join(map(chr, np.random.default_rng(0).integers(65, 122, 250)))  # 96, 96 and the last 58
    [whole] = ask(lm, "loglikelihood_rolling", (text,))
    [(first, _)] = ask(lm, "loglikelihood", ("", text[:96]))
    parts = ask(lm, "loglikelihood", (text[95], text[96:192]), (text[153:192], text[192:]))
    assert whole == pytest.approx(first + sum(value for value, _ in parts), rel=1e-6)


def test_greedy_text_is_known_as_greedy_and_ends_before_a_stop_string(lm):
    settings = {"max_gen_toks": 12}
    [text] = ask(lm, "generate_until", ("To be", settings))
    assert len(text) == 12 or "\ufffd" in text
    [(_, greedy), (_, other)] = ask(lm, "loglikelihood", ("To be", text), ("To be", text[:-1] + "~"))
    assert greedy and not other
    [stopped] = ask(lm, "generate_until", ("To be", settings | {"until": [text[4:6], text[8]]}))
    assert stopped == text[: min(text.index(text[4:6]), text.index(text[8]))]


def test_a_drawn_text_is_another_for_each_request_and_the_same_again(lm):
    settings = {"max_gen_toks": 8, "do_sample": True, "temperature": 1.0, "top_k": 20}
    texts = ask(lm, "generate_until", *[("To be", settings)] * 2)
    assert texts[0] != texts[1]
    assert ask(lm, "generate_until", *[("To be", settings)] * 2) == texts


def test_what_does_not_fit_is_cut_from_the_left_and_counted(lm):
    before = lm.truncated
    long, short = ask(lm, "loglikelihood", ("x" * 50 + "y" * 96, "z"), ("y" * 96, "z"))
    assert long == short and lm.truncated == before + 1
    long, short = ask(lm, "generate_until", *[(text + "y" * 88, {"max_gen_toks": 8}) for text in ("x" * 50, "")])
    assert long == short and lm.truncated == before + 2


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"max_gen_toks": 96}, "'the_task' asks for 96 new tokens .* no room for a prompt in model.context_length=96"),
        ({"max_gen_toks": 4, "num_beams": 3}, "'the_task' asks to generate with num_beams; there are"),
    ],
)
def test_a_generation_that_cannot_be_is_refused(lm, settings, message):
    with pytest.raises(UserError, match=message):
        ask(lm, "generate_until", ("To be", settings))


def test_an_empty_continuation_is_refused(lm):
    with pytest.raises(UserError, match="'the_task' asks for the likelihood of an empty text"):
        ask(lm, "loglikelihood", ("To be", ""))


def test_a_model_that_fills_in_cannot_be_asked():
    run = asked.make_run("gpt2_bytes")
    masked = dataclasses.replace(run, config=run.config.replace(data={"objective": "masked_lm"}))
    with pytest.raises(UserError, match="data.objective='masked_lm' fills in what is missing"):
        harness.GptjaxLM(masked)


def test_without_end_of_text_a_line_break_stands_before_a_text():
    assert harness.prefix_token(CharTokenizer("\nab", has_eot=False)) == 0
    assert harness.prefix_token(CharTokenizer("\nab", has_eot=True)) == 3
    with pytest.raises(UserError, match="'chars' has no end-of-text token and no line break"):
        harness.prefix_token(CharTokenizer("ab", has_eot=False))


def test_stopping_is_heeded_in_every_kind_of_request():
    lm = harness.GptjaxLM(asked.make_run("gpt2_bytes"), should_stop=lambda: True)
    for kind, given in {
        "loglikelihood": ("a", "b"),
        "loglikelihood_rolling": ("ab",),
        "generate_until": ("a", {"max_gen_toks": 2}),
    }.items():
        with pytest.raises(harness.Stopped):
            ask(lm, kind, given)
