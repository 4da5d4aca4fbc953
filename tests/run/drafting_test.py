"""A draft named from outside: by run.generate, and by the flags of gptjax sample."""

import dataclasses

import pytest
from places import ROOT

import gptjax
from gptjax import cli
from gptjax.errors import UserError

GOLDEN = ROOT / "tests" / "golden" / "checkpoints" / "schema2"
SETTINGS = {"max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def run():
    return gptjax.load(GOLDEN)


def test_a_run_guesses_for_another_and_n_grams_do_and_the_greedy_text_stays(run, capsys):
    prompt = run.tokenizer.decode([3, 1, 4])
    [plain] = run.generate(prompt, **SETTINGS)
    for draft in (run, "ngram"):
        [guessed] = run.generate(prompt, draft=draft, draft_tokens=2, **SETTINGS)
        assert guessed.tokens.tolist() == plain.tokens.tolist()
    flags = [f"--prompt={prompt}", "--max_tokens=8", "--temperature=0", f"--draft={GOLDEN}", "--draft_tokens=2"]
    assert cli.main(["sample", str(GOLDEN), *flags]) in (0, None)
    assert capsys.readouterr().out == f"{plain}\n"


def test_a_draft_that_cannot_guess_is_refused(run):
    tokenizer = type("Other", (), {"hash": "another"})()
    for options, said in (
        (dict(draft=3), "draft=3 is no draft; expected 'ngram', a Run, or the directory of one"),
        (dict(draft_tokens=2), "draft_tokens=2 is only for draft; add draft=ngram"),
        (dict(draft="ngram", num_beams=2), "num_beams=2 has no use for draft"),
        (dict(draft="ngram", draft_tokens=99), "draft_tokens=99 is out of range; use 1 to 15"),
        (dict(draft=dataclasses.replace(run, tokenizer=tokenizer)), "has another tokenizer than the run in"),
        (dict(draft="nowhere"), "nowhere"),
    ):
        with pytest.raises(UserError, match=said):
            run.generate("a", **options)


@pytest.mark.parametrize(
    "flags,said",
    [
        (["--draft_tokens=2"], "--draft_tokens=2 is only for --draft"),
        (["--draft=ngram", "--num_beams=2"], "--num_beams=2 has no use for --draft"),
        (["--draft=ngram", "--chat", "--prompt=a", "--best_of=2", "--reward=length"], "without --best_of"),
    ],
)
def test_flags_of_a_draft_that_do_not_go_together_are_refused_before_anything_is_read(flags, said, capsys):
    assert cli.main(["sample", "nowhere", *flags]) == 2
    assert said in capsys.readouterr().err
