"""Reinforcement learning in the loop: what an iteration learns from, and that interruptions and meshes change none of it."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import runs

from gptjax import errors
from gptjax.config.config_file import from_dict
from gptjax.config.rl_fields import RLConfig
from gptjax.posttrain import answering, minibatches, rollout_feed, rollouts
from gptjax.rundir import metrics
from gptjax.schedule import NO_REWINDS
from gptjax.training import main, recovery

ITERATIONS, STEPS_PER_CALL = 4, 4
CLOCK = ("time", "seconds", "tokens_per_second")  # of a row, what no two runs have in common


def stop_now(answer) -> float:
    """A reward that asks the run to stop, where the file it watches says that this answer is the one."""
    counted = int(open(os.environ["GPTJAX_TEST_STOP"]).read()) - 1
    with open(os.environ["GPTJAX_TEST_STOP"], "w") as file:
        file.write(str(counted))
    if counted == 0:
        signal.raise_signal(signal.SIGTERM)
    return 0.0


def fails_late(answer) -> float:
    """A reward that raises where the file it watches says that this answer is the one, and from then on is 0."""
    counted = int(open(os.environ["GPTJAX_TEST_STOP"]).read()) - 1
    with open(os.environ["GPTJAX_TEST_STOP"], "w") as file:
        file.write(str(counted))
    return 1 / counted if counted == 0 else 0.0


@pytest.fixture(scope="module")
def rl_values(text):
    """PPO with all that an iteration may have: a critic, text beside, an adaptive coefficient, groups drawn again."""
    return {
        "model": dict(context_length=32, n_layers=1, d_model=16, n_heads=2, dtype="float32", critic="shared"),
        "data": dict(tokenizer="bytes", chat="gptjax", cache_dir=str(text.parent / "cache")),
        "optim": dict(peak_lr=1e-2, schedule="constant"),
        "train": dict(
            steps=ITERATIONS * STEPS_PER_CALL, batch_size=8, steps_per_call=STEPS_PER_CALL, log_every=4,
            loss="ppo(ptx_coef=0.5)", tensorboard=False,
        ),
        "rl": dict(
            prompts="copying(shortest=2, longest=3)", problems=20, eval_prompts=8, rewards="ended + 0.25*length(target=3)",
            group=4, epochs=2, max_tokens=5, advantage="gae", kl_coef=0.05, kl_control="adaptive(horizon=100)",
            ptx=f"text:{text}", redraws=1,
        ),
        "checkpoint": dict(every_steps=STEPS_PER_CALL, keep=9),
        "eval": dict(every_steps=8, sample_every_steps=4),
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(rl_values, tmp_path_factory):
    """The directory of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert main.train(from_dict(rl_values), str(workdir)) == 0
    return workdir


def rows(workdir, *kinds) -> list[dict]:
    """What a run has logged, but for times."""
    kept = [row for row in metrics.read_metrics(workdir / "metrics.jsonl") if row["kind"] in kinds]
    return [
        {name: value for name, value in row.items() if name not in CLOCK and not name.startswith("seconds")}
        for row in kept
    ]


def answers(workdir) -> list[dict]:
    return [row for row in rows(workdir, "event") if row["event"] == "answer"]


def test_a_run_that_goes_on_from_any_iteration_draws_the_same_answers_and_comes_to_the_same_bits(
    rl_values, whole, tmp_path
):
    for iteration in (1, 3):
        workdir = tmp_path / str(iteration)
        shutil.copytree(whole, workdir)
        for step in range(STEPS_PER_CALL * (iteration + 1), ITERATIONS * STEPS_PER_CALL + 1, STEPS_PER_CALL):
            shutil.rmtree(workdir / "checkpoints" / str(step))
        assert main.train(from_dict(rl_values), str(workdir)) == 0
        assert rows(workdir, "rollout", "eval") == rows(whole, "rollout", "eval")
        assert answers(workdir) == answers(whole) and len(answers(whole)) == 3 * ITERATIONS
        runs.assert_same_state(whole, workdir, ITERATIONS * STEPS_PER_CALL)


def test_the_coefficient_of_the_penalty_moves_and_is_kept_in_checkpoints(whole):
    coefs = [row["kl_coef"] for row in rows(whole, "rollout")]
    assert coefs[0] == 0.05 and len(set(coefs)) == ITERATIONS
    for row, coef in zip(rows(whole, "rollout"), coefs[1:]):
        manifest = json.loads((whole / "checkpoints" / str(row["step"]) / "manifest.json").read_text())
        assert manifest["data"]["carried"]["kl_coef"] == pytest.approx(coef, rel=1e-11)  # the log has 12 digits


def test_the_first_answers_are_the_reference_s_own(whole):
    first, *_, last = rows(whole, "rollout")
    assert abs(first["kl"]) < 1e-4 and abs(first["kl_k3"]) < 1e-4 and last["kl_k3"] > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 40])
def test_a_run_that_is_told_to_stop_while_it_scores_goes_on_as_if_nobody_had(
    rl_values, whole, tmp_path, monkeypatch, number
):
    """Of the first iteration, and of the second."""
    monkeypatch.setenv("GPTJAX_TEST_STOP", str(tmp_path / "stop"))
    (tmp_path / "stop").write_text(str(number))
    rewards = rl_values["rl"]["rewards"] + " + 0*rollout_feed_test:stop_now"
    values = runs.changed(rl_values, rl=dict(rewards=rewards))
    assert main.train(from_dict(values), str(tmp_path / "run")) == errors.SAVED_AND_STOPPED
    assert main.train(from_dict(values), str(tmp_path / "run")) == 0
    without = [
        {name: value for name, value in row.items() if name != "reward/stop_now"}
        for row in rows(tmp_path / "run", "rollout")
    ]
    assert without == rows(whole, "rollout") and answers(tmp_path / "run") == answers(whole)
    runs.assert_same_state(whole, tmp_path / "run", ITERATIONS * STEPS_PER_CALL)


@pytest.mark.slow
def test_a_run_whose_reward_raises_has_saved_what_it_learnt_before_and_goes_on(rl_values, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTJAX_TEST_STOP", str(tmp_path / "stop"))
    (tmp_path / "stop").write_text("40")  # of the second iteration
    rewards = rl_values["rl"]["rewards"] + " + 0*rollout_feed_test:fails_late"
    cadence = dict(checkpoint=dict(every_steps=None), eval=dict(every_steps=None, sample_every_steps=None))
    values = runs.changed(rl_values, rl=dict(rewards=rewards), **cadence)
    with pytest.raises(
        errors.UserError, match="fails_late' failed: ZeroDivisionError: division by zero; correct the reward"
    ):
        main.train(from_dict(values), str(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / str(STEPS_PER_CALL)).exists()
    assert main.train(from_dict(values), str(tmp_path / "run")) == 0
    runs.assert_same_state(whole, tmp_path / "run", ITERATIONS * STEPS_PER_CALL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "message"),
    [(dict(context_length=16), "reads 16 tokens, and model.context_length=32"), (None, "is not a run directory")],
)
def test_a_reference_that_cannot_judge_the_answers_is_refused_before_anything_is_written(
    rl_values, text, tmp_path, model, message
):
    if model is not None:
        lines = (json.dumps(dict(prompt=str(i), completion=str(i))) + "\n" for i in range(60))
        (tmp_path / "chat.jsonl").write_text("".join(lines))
        data = dict(source="jsonl", path=str(tmp_path / "chat.jsonl"), packing="best_fit", val_split="document")
        data |= dict(chat="gptjax", tokenizer="bytes")
        values = {
            "model": rl_values["model"] | dict(critic=None) | model,
            "data": data | dict(cache_dir=str(text.parent / "cache")),
            "train": dict(steps=1, batch_size=8, log_every=1, tensorboard=False),
            "checkpoint": dict(every_steps=None),
            "eval": dict(every_steps=None),
        }
        assert main.train(from_dict(values), str(tmp_path / "other")) == 0
    values = runs.changed(rl_values, rl=dict(reference=str(tmp_path / "other")))
    with pytest.raises(errors.UserError, match=message) as raised:
        main.train(from_dict(values), str(tmp_path / "run"))
    assert str(raised.value).startswith("rl.reference=") and not (tmp_path / "run").exists()


def test_each_answer_is_in_one_minibatch_of_each_pass():
    train = dict(steps=12, batch_size=4, steps_per_call=6, log_every=6, loss="grpo")
    values = {"train": train, "rl": dict(prompts="copying", rewards="exact", group=4, epochs=2, max_tokens=8)}
    config = from_dict(values | {"checkpoint": dict(every_steps=None), "eval": dict(every_steps=None)})
    order_SB = minibatches.order(config, 0)
    assert order_SB.shape == (6, 4)
    passes = order_SB.reshape(2, 12)
    assert (np.sort(passes, axis=1) == np.arange(12)).all() and (passes[0] != passes[1]).any()
    assert (minibatches.order(config, 1) != order_SB).any()
    arrays = minibatches.arrays({"x": np.arange(12) * 10}, order_SB)
    assert (arrays["x"] == order_SB * 10).all()


def test_what_belongs_to_an_answer_stays_with_it_through_passes_and_minibatches():
    """Each number of an answer is its place among the answers, so that an array in another order is seen."""
    train = dict(steps=12, batch_size=4, steps_per_call=6, log_every=6, loss="grpo")
    values = {"train": train, "rl": dict(prompts="copying", rewards="exact", group=4, epochs=2, max_tokens=8)}
    config = from_dict(values | {"checkpoint": dict(every_steps=None), "eval": dict(every_steps=None)})
    names = ("token_BT", "weight_BL", "logprob_BL", "advantage_BL", "reference_BL", "old_BL", "value_BL", "return_BL")
    of_answers = {name: np.repeat(np.arange(12)[:, None], 3, axis=1) for name in names}
    for iteration in range(3):
        batch = minibatches.arrays(of_answers, minibatches.order(config, iteration))
        assert batch.keys() == of_answers.keys()
        for name, array in batch.items():
            assert array.shape == (6, 4, 3)
            np.testing.assert_array_equal(array, batch["advantage_BL"], err_msg=name)


def test_no_two_answers_of_a_run_are_drawn_by_the_same_random_numbers_also_those_drawn_again():
    """The most that three iterations of four prompts draw: the first answers, and all of them again in each of two rounds."""
    draws = [rollout_feed.first_draw(iteration, 4) for iteration in range(3)]
    draws += [rollout_feed.redraw(iteration, round_, 2, 4, 4) for iteration in range(3) for round_ in range(2)]
    assert [draw.number_P.tolist() for draw in draws[:3]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    seeds = [rollouts.row_seed(0, draw.key, number, i) for draw in draws for number in draw.number_P for i in range(2)]
    assert len(set(seeds)) == len(seeds) == 9 * 4 * 2
    further = [number for draw in draws[3:] for number in draw.number_P]
    assert len(set(further)) == len(further)  # no prompt comes again before all have


def test_fewer_missing_groups_are_the_first_of_a_round():
    whole, part = (rollout_feed.redraw(5, 1, 2, 8, missing) for missing in (8, 3))
    assert part.key == whole.key and part.number_P.tolist() == whole.number_P[:3].tolist()


def test_a_run_that_diverges_within_an_iteration_goes_on_with_the_next_one(rl_values):
    config = from_dict(rl_values)
    rewinds = recovery.rewound(config, NO_REWINDS, NO_REWINDS, STEPS_PER_CALL, errors.Diverged(5, "grad_norm is nan"))
    assert rewinds.windows == ((STEPS_PER_CALL, 8 * STEPS_PER_CALL),)


def test_a_group_whose_rewards_differ_by_the_penalty_alone_is_not_drawn_again():
    zeros_BL = np.zeros((6, 3), np.float32)
    length_B, ended_B = np.full(6, 3, np.int32), np.array([True, False, True, True, False, False])
    made = rollouts.Rollouts(np.zeros((6, 4), np.int32), length_B, length_B, zeros_BL, zeros_BL, ended_B)
    answered = answering.Answered(list("abcdef"), list("abcdef"), made, {}, np.ones(6, np.float32))
    for penalty, taught in ((None, []), (0.5, ["a", "b"])):
        kept, equal = rollout_feed._apart(answered, RLConfig(group=2, unended_penalty=penalty))
        assert kept.texts == taught and len(equal.texts) == 6 - len(taught)


def test_advantages_are_of_penalised_scores_and_of_the_judges_numbers():
    weight_BL = np.array([[0, 1, 1], [0, 1, 0]], np.float32)
    length_B, ended_B = np.array([4, 3], np.int32), np.array([True, False])
    logprob_BL = np.full((2, 3), -1, np.float32)
    made = rollouts.Rollouts(np.zeros((2, 4), np.int32), length_B, length_B, weight_BL, logprob_BL, ended_B)
    answered = answering.Answered(["a", "b"], ["a", "b"], made, {}, np.array([0.5, 0.75], np.float32))
    arrays = {name: np.full((2, 3), value, np.float32) for name, value in (("reference_BL", -2), ("value_BL", 3))}
    seen = rollout_feed.judged_answers(answered, arrays, RLConfig(group=2, unended_penalty=2.0), 0.25)
    assert seen.score_B.tolist() == [0.5, -1.25] and (seen.group, seen.kl_coef) == (2, 0.25)
    for name in ("weight_BL", "logprob_BL"):
        assert getattr(seen, name) is getattr(made, name)
    for name in arrays:
        assert getattr(seen, name) is arrays[name]
    without = rollout_feed.judged_answers(answered, {}, RLConfig(group=2), 0.0)
    assert without.score_B.tolist() == [0.5, 0.75] and without.reference_BL is without.value_BL is None


def test_groups_drawn_again_are_further_prompts_and_keep_the_batch_full(whole):
    first, *_ = rows(whole, "rollout")
    assert first["redraws"] == 1 and 0 <= first["equal_groups"] <= 1
