import json

import pytest

import gptjax
from gptjax import cli


def compare(capsys, *words) -> tuple[int, str, str]:
    return cli.main(["compare", *map(str, words)]), *capsys.readouterr()


def test_a_run_against_itself_is_the_same(trained, capsys):
    code, output, _ = compare(capsys, trained, trained)
    assert code == 0 and output.splitlines()[0] == f"A: {trained}, step 6 (the newest)"
    assert output.splitlines()[-1] == "A and B are the same on this text"


def test_in_python_it_is_the_same_comparison_of_paths_or_runs(trained, capsys):
    output = compare(capsys, trained, trained, "--step_a=4")[1].splitlines()
    found = gptjax.compare(gptjax.load(trained, 4), trained)
    assert repr(found).splitlines() == output[2:] and output[2].startswith("held-out text of A: ")


def test_two_steps_of_a_run_differ_by_their_losses(trained, capsys):
    code, output, _ = compare(capsys, trained, trained, "--step_a=4", "--step_b=6", "--json", "--max_tokens=all")
    facts = json.loads(output)
    assert code == 0 and (facts["a"]["step"], facts["b"]["step"]) == (4, 6)
    loss = facts["loss"]["text"]
    assert loss["difference"] == pytest.approx(loss["b"] - loss["a"], rel=1e-3) and loss["difference"] != 0
    assert (
        0 < loss["standard_error"] < loss["unpaired_error"] and facts["convention"]["pairs"] == "windows of 16 tokens"
    )
    assert (
        compare(capsys, trained, trained, "--step_a=6", "--step_b=4", "--max_tokens=all")[1]
        .splitlines()[-1]
        .startswith("A is better")
    )


@pytest.mark.parametrize(
    "words, message",
    [
        (["/nowhere/run"], "no such directory"),
        (["--step_b=all"], "takes one step of each run"),
        (["--step_b=5"], "no checkpoint of step 5; there are: 4, 6"),
        (
            ["--protocol=lambada", "--data=x"],
            "a comparison needs the losses of tokens, which --protocol=lambada does not give",
        ),
        (["--stride=99"], "--stride=99 must be from 1 to the context length"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(trained, capsys, words, message):
    b = [] if words[0].startswith("/") else [trained]
    code, output, errors = compare(capsys, trained, *b, *words)
    assert code == 2 and message in errors and errors.count("\n") == 1 and not output
