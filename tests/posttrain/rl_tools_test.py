"""Reinforcement learning whose answers call a calculator, scored by a reward model, with groups drawn again."""

import json
import shutil

import jax
import numpy as np
import pytest
import runs

import gptjax
from gptjax import cli
from gptjax.config.config_file import from_dict
from gptjax.data import tokenizers
from gptjax.data.chat import Message, chat_format
from gptjax.evaluation import scored
from gptjax.parallel import numerics
from gptjax.posttrain import rollouts, sampled, tools
from gptjax.posttrain.sampled import Sampling
from gptjax.rundir import metrics
from gptjax.training import main

CALL = "<tool_call>calculator(2+3)</tool_call>"
SPOKEN = (Message("assistant", CALL), Message("tool", "5"), Message("assistant", "5"))
STEPS, ITERATIONS = 8, 4
MODEL = dict(context_length=64, n_layers=1, d_model=32, n_heads=2, dtype="float32")
CLOCK = ("time", "seconds", "tokens_per_second")


def answer_tokens(answer) -> float:
    """A reward: the tokens of an answer, those of a tool among them."""
    return float(len(answer.token_L))


def chat_tokenizer():
    """(chat format, tokenizer) of all runs here."""
    form = chat_format("gptjax", "data.chat")
    return form, tokenizers.from_spec("bytes").with_special(form.symbols)


def write(file, records) -> str:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tools")


@pytest.fixture(scope="module")
def shared(folder):
    """Sections that all runs here have in common."""
    return {
        "model": MODEL,
        "data": dict(tokenizer="bytes", chat="gptjax", cache_dir=str(folder / "cache")),
        "eval": dict(every_steps=None),
    }


@pytest.fixture(scope="module")
def policy(shared, folder):
    """A run that has learnt one conversation by heart, with a call of the calculator."""
    spoken = [{"role": one.role, "content": one.content} for one in SPOKEN]
    records = [{"messages": [{"role": "user", "content": letter}, *spoken]} for letter in "abcdefgh"]
    values = shared | {
        "data": shared["data"] | dict(source="jsonl", path=write(folder / "learnt.jsonl", records), packing="best_fit",
                                      val_split="document", val_fraction=0.2),
        "optim": dict(peak_lr=1e-2, schedule="constant"),
        "train": dict(steps=100, batch_size=8, log_every=50, tensorboard=False),
        "checkpoint": dict(every_steps=None),
    }  # fmt: skip
    assert main.train(from_dict(values), str(folder / "policy")) == 0
    return folder / "policy"


@pytest.fixture(scope="module")
def judge(shared, folder):
    """A reward model, hardly trained."""
    pairs = [{"prompt": letter, "chosen": "5", "rejected": str(i)} for i, letter in enumerate("abcd")]
    values = shared | {
        "model": MODEL | dict(task_head="score", init_std=0.3),
        "data": shared["data"] | dict(source="jsonl", path=write(folder / "pairs.jsonl", pairs), preferences="compared"),
        "train": dict(steps=2, batch_size=8, log_every=1, loss="reward", tensorboard=False),
        "checkpoint": dict(every_steps=None),
    }  # fmt: skip
    assert main.train(from_dict(values), str(folder / "judge")) == 0
    return folder / "judge"


@pytest.fixture(scope="module")
def values(shared, folder, policy, judge):
    prompts = [{"prompt": letter} for letter in "abcdefghijklmnop"]
    return shared | {
        "optim": dict(peak_lr=3e-3, schedule="constant"),
        "train": dict(steps=STEPS, batch_size=8, steps_per_call=STEPS // ITERATIONS, log_every=2, start_from=str(policy),
                      loss="grpo(beta=0.01, correction='token_truncate')", tensorboard=False),
        "rl": dict(prompts="jsonl:" + write(folder / "prompts.jsonl", prompts), tools="calculator", group=4, max_tokens=52,
                   rewards=f"score(run='{judge}') + 0*rl_tools_test:answer_tokens", redraws=3, temperature=1.3, shown=4),
        "checkpoint": dict(every_steps=2, keep=9),
        "eval": dict(every_steps=None, sample_every_steps=2),
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(values, folder):
    assert main.train(from_dict(values), str(folder / "whole")) == 0
    return folder / "whole"


def rows(workdir) -> list[dict]:
    """The iterations that a run has logged, but for times."""
    kept = metrics.read_metrics(workdir / "metrics.jsonl", "rollout")
    return [{k: v for k, v in row.items() if k not in CLOCK and not k.startswith("seconds")} for row in kept]


def answers(workdir) -> list[dict]:
    events = metrics.read_metrics(workdir / "metrics.jsonl", "event")
    return [
        {k: v for k, v in row.items() if k not in CLOCK and not k.startswith("seconds")}
        for row in events
        if row["event"] == "answer"
    ]


@pytest.mark.slow
def test_log_probabilities_of_a_row_with_a_tool_s_turn_are_the_trainers_and_the_tool_s_tokens_weigh_nothing(policy):
    run, (form, tokenizer) = gptjax.load(policy), chat_tokenizer()
    prompt_L = form.prompt((Message("user", "a"),), tokenizer)
    sampling = Sampling(temperature=0.7, max_tokens=52)
    respond = tools.responder(["calculator"], form, tokenizer)
    with numerics.on_mesh(run.mesh):
        made = rollouts.sample(
            run.params, [prompt_L], graph=run.graph, sampling=sampling, ends=form.stop_ids(tokenizer), length=60, group=8,
            respond=respond,
        )  # fmt: skip
        of_trainer = jax.jit(
            lambda params, token_BT: sampled.token_logprobs(
                params, {"token_BT": token_BT}, graph=run.graph, config=run.config, sampling=sampling
            )[0]
        )(run.params, made.token_BT)
    assert rollouts.difference(made.logprob_BL, of_trainer, made.weight_BL)["logprob_gap_max"] < 1e-5
    whole_L = form.prompt((Message("user", "a"), *SPOKEN), tokenizer)
    said = [
        b for b in range(8) if made.token_BT[b, : made.length_B[b]].tolist() == whole_L[: made.length_B[b]].tolist()
    ]
    assert said, "the model has learnt the conversation"
    first, tool_turn = len(prompt_L), respond(form.prompt((Message("user", "a"), SPOKEN[0]), tokenizer)[:-1])
    for b in said:
        drawn = made.weight_BL[b, first - 1 : made.length_B[b] - 1]
        calling = len(tokenizer.encode(CALL)) + 1
        expected = [1] * calling + [0] * len(tool_turn) + [1, 1]
        assert drawn.tolist() == expected and not made.logprob_BL[b][made.weight_BL[b] == 0].any()


@pytest.mark.slow
def test_a_run_whose_answers_call_tools_has_the_log_probabilities_of_the_trainer(whole):
    for row in rows(whole):
        assert row["logprob_gap_max"] < 1e-5 and row["sampler_kl"] < 1e-9
        assert row["reward/answer_tokens"] > row["length"] + 1, "a tool's tokens are of the answer, and not drawn"


@pytest.mark.slow
def test_answers_are_worth_what_the_reward_model_says_of_them(whole, judge):
    """Where they end by themselves, which is what run.score takes."""
    run, shown = gptjax.load(judge), [row for row in answers(whole) if row["text"] == "5"]
    assert len(answers(whole)) == 4 * ITERATIONS and shown
    asked = [[{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": "5"}] for row in shown]
    np.testing.assert_allclose(run.score(asked), [row["reward"] for row in shown], atol=1e-5)


@pytest.mark.slow
def test_groups_with_equal_rewards_are_drawn_again_and_a_resumed_run_draws_the_same_ones(values, whole, tmp_path):
    assert {row["redraws"] for row in rows(whole)} - {0}, "a model that is this sure has equal groups"
    shutil.copytree(whole, tmp_path / "run")
    for step in range(4, STEPS + 1, 2):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    assert main.train(from_dict(values), str(tmp_path / "run")) == 0
    assert rows(tmp_path / "run") == rows(whole) and answers(tmp_path / "run") == answers(whole)
    runs.assert_same_state(whole, tmp_path / "run", STEPS)


@pytest.mark.slow
def test_the_best_of_several_answers_is_the_one_that_the_reward_model_of_a_run_gives_most(policy, judge, capsys):
    """Also where answers are cut: they are scored without an end token, as in training."""
    command = [
        "sample",
        f"--workdir={policy}",
        "--chat",
        "--prompt=a",
        "--prompt=z",
        "--best_of=4",
        f"--reward=run:{judge}",
    ]
    settings = dict(max_tokens=4, temperature=4.0)
    assert cli.main([*command, "--json", "--seed=3", "--max_tokens=4", "--temperature=4"]) == 0
    printed, said = capsys.readouterr()
    run, reward_model, (form, tokenizer) = gptjax.load(policy), gptjax.load(judge), chat_tokenizer()
    for record, (question, seed) in zip(map(json.loads, printed.splitlines()), (("a", 3), ("z", 7)), strict=True):
        *asked, answer = record["messages"]
        drawn = [run.chat(asked, seed=seed + i, **settings) for i in range(4)]
        prompt_L = form.prompt((Message("user", question),), tokenizer)
        unended = [np.concatenate([prompt_L, one.tokens]).astype(np.int32) for one in drawn]
        scores = scored.score_tokens(reward_model, unended)
        assert {one.finish_reason for one in drawn} == {"length"} and len(set(scores)) > 1
        assert answer["content"] == drawn[int(scores.argmax())].text
        assert record["score"] == pytest.approx(float(scores.max()), abs=1e-5)
    assert "best of 4: reward" in said
