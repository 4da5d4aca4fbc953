"""Best-of-n: hand-worked numbers, the estimator against all subsets, and the command."""

import itertools
import json
import math

import chat_folders
import numpy as np
import pytest

import gptjax
from gptjax import cli
from gptjax.data.chat import chat_format
from gptjax.errors import UserError
from gptjax.generation.text import Completion
from gptjax.huggingface import importing
from gptjax.posttrain import best_of


def test_the_divergence_is_log_n_minus_n_minus_1_over_n():
    assert best_of.kl(1) == 0
    assert best_of.kl(2) == pytest.approx(0.193147, abs=1e-6)
    assert best_of.kl(16) == pytest.approx(math.log(16) - 15 / 16)


def test_the_estimate_is_the_mean_over_all_subsets():
    score_N, judged_N = np.array([0.3, -1.0, 2.5, 0.3, 1.0]), np.array([1.0, 0.0, -3.0, 2.0, 5.0])
    for n in range(1, 6):
        subsets = [list(chosen) for chosen in itertools.combinations(range(5), n)]
        assert best_of.expected_best(score_N, n) == pytest.approx(np.mean([score_N[s].max() for s in subsets]))
        judged = []
        for s in subsets:
            judged.append(judged_N[s][score_N[s] == score_N[s].max()].mean())
        # A tie of which one is left out of a subset is met by its other half as often: the mean over both is the same.
        assert best_of.expected_best(score_N, n, judged_N) == pytest.approx(np.mean(judged))
    assert best_of.best_weights(3, 2).tolist() == pytest.approx([0, 1 / 3, 2 / 3])  # worked by hand
    with pytest.raises(UserError, match="best-of-6 of 5 answers"):
        best_of.expected_best(score_N, 6)


def test_a_curve_has_its_reward_and_error_over_prompts():
    one, two, four = best_of.curve([[0, 1, 0, 1], [1, 1, 1, 1]])
    assert [point.n for point in (one, two, four)] == [1, 2, 4]
    assert one.reward == pytest.approx(0.75) and one.error == pytest.approx(0.25)
    assert two.reward == pytest.approx((5 / 6 + 1) / 2)  # of 6 pairs of the first prompt, one has no 1
    assert four.reward == 1 and four.error == 0 and four.kl == best_of.kl(4)
    assert best_of.curve([[1.0, 2.0]])[0].error is None


def test_an_answer_that_ended_has_its_end_token_among_its_tokens_and_a_cut_one_has_none():
    made = [Completion("", "ab", np.array([1, 2], np.int32), reason, None) for reason in ("eot", "length")]
    scores = best_of.scores("length(target=3, unit='tokens')", [(), ()], made, end_id=9)
    assert scores.tolist() == pytest.approx([1, 2 / 3])


def test_best_of_needs_a_reward_and_prompts_of_a_conversation(capsys):
    for flags, message in (
        (["--best_of=2"], "--best_of and --reward go together; add --reward=NAME or run:DIR"),
        (["--reward=ended"], "go together; add --best_of=N"),
        (["--best_of=0", "--reward=ended"], "--best_of=0 is too small"),
        (["--best_of=2", "--reward=ended", "--prompt=a"], "add --chat"),
        (["--best_of=2", "--reward=ended", "--chat", "--prompt=a", "--num_beams=2"], "leave out --num_beams"),
    ):
        assert cli.main(["sample", "--workdir=nowhere", *flags]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_the_best_of_the_answers_that_are_drawn_as_conversations(tmp_path, capsys):
    folder = chat_folders.write(tmp_path / "folder", None, chat_template=chat_format("chatml").template)
    importing.import_folder(str(folder), str(tmp_path / "run"))
    capsys.readouterr()
    flags = ["--chat", "--system=s", "--prompt=Hello", "--prompt=Bye", "--max_tokens=5", "--seed=3"]
    reward = "length(target=9, unit='characters')"
    command = ["sample", f"--workdir={tmp_path / 'run'}", "--best_of=4", f"--reward={reward}", "--json", *flags]
    assert cli.main(command) == 0
    printed, said = capsys.readouterr()
    loaded = gptjax.load(tmp_path / "run")
    for record, (question, seed) in zip(map(json.loads, printed.splitlines()), (("Hello", 3), ("Bye", 7)), strict=True):
        *asked, answer = record["messages"]
        assert asked == [{"role": "system", "content": "s"}, {"role": "user", "content": question}]
        texts = [loaded.chat(asked, max_tokens=5, seed=seed + i).text for i in range(4)]
        assert answer["content"] in texts and answer["role"] == "assistant"
        assert abs(len(answer["content"]) - 9) == min(abs(len(text) - 9) for text in texts)
    assert [line.partition(":")[0] for line in said.splitlines()[-3:]] == ["best of 1", "best of 2", "best of 4"]
