"""Study files: which runs a declaration stands for, how long they are, and what they are trained with."""

import dataclasses
import math
import re

import pytest
from ml_collections import ConfigDict
from places import ROOT

from gptjax import flops, schedule, study
from gptjax.errors import UserError
from gptjax.study.declare import declaration, recipes


def base():
    config = ConfigDict()
    config.model = dict(context_length=32, vocab_size=65, dtype="float32")
    config.optim = dict(peak_lr=2e-3, warmup_steps=10)
    config.train = dict(batch_size=4, steps_per_call=10, log_every=10)
    return config


def ladder(**fields):
    sizes = study.by_depth([1, 2, 4], aspect=16, head_dim=16)
    return study.Study(**{"base": base(), "sizes": sizes, "budgets": (1e10, 1e11)} | fields)


def runs(declared, results=None):
    return declaration.runs(declared, None, results)


def test_lstms_stand_beside_transformers_whatever_the_base_says_of_heads():
    based = base()
    based.model.update(n_heads=4, position="rope", norm="rmsnorm")
    sizes = study.by_depth([2], aspect=16, head_dim=8) | study.lstm_by_params([1e4, 4e4], tied_head=False)
    planned = runs(ladder(base=based, sizes=sizes, budgets=(1e11,)))
    assert [run.factors["family"] for run in planned] == ["gpt", "lstm", "lstm"]
    assert [run.name for run in planned[1:]] == ["lstm-w24-C1e+11-seed0", "lstm-w48-C1e+11-seed0"]
    for run, wanted in zip(planned[1:], (1e4, 4e4)):
        assert flops.parameters(run.config.model).non_embedding == pytest.approx(wanted, rel=0.1)
        assert not run.config.model.tied_head and run.config.model.context_length == 32
    with pytest.raises(UserError, match="only 1 widths for 2 counts"):
        study.lstm_by_params([1e4, 1.01e4])


def test_a_study_is_the_product_of_its_sizes_budgets_seeds_and_grid():
    planned = runs(ladder(seeds=(0, 1), grid={"optim.weight_decay": (0.0, 0.1)}))
    assert len(planned) == 3 * 2 * 2 * 2 == len({run.name for run in planned})
    last = planned[-1]
    assert last.name == "d4-C1e+11-weight_decay=0.1-seed1"
    assert (last.config.train.seed, last.config.data.seed, last.config.optim.weight_decay) == (1, 1, 0.1)
    assert last.factors["family"] == "gpt" and last.factors["budget"] == 1e11 and last.factors["learning_rate"] == 2e-3


@pytest.mark.parametrize("convention", ["exact", "6n", "6n_attn_full"])
def test_a_budget_is_met_within_one_percent_in_the_convention_asked_for(convention):
    for run in runs(ladder(flops=convention)):
        spent = flops.flops_per_token(run.config.model)[convention] * schedule.run_tokens(run.config)
        assert spent == pytest.approx(run.factors["budget"], rel=0.01), run.name
        assert run.config.train.steps % run.config.train.steps_per_call == 0


def test_a_budget_of_few_steps_divides_the_steps_of_a_call_and_one_of_none_is_refused():
    short = runs(ladder(budgets=(2.11e9,), sizes=study.by_depth([2], aspect=16, head_dim=16)))[0]
    assert 10 % short.config.train.steps_per_call == 0 and short.config.train.steps_per_call < 10
    with pytest.raises(
        UserError, match="no number of steps of 128 tokens meets within 1%.*use a smaller batch"
    ) as refused:
        runs(ladder(budgets=(1e8,)))
    enough = float(re.search(r"(\S+) FLOPs or more do for this model", str(refused.value)).group(1))
    smallest = ladder().sizes["d1"]
    for budget in (enough, 1.007 * enough, 1.013 * enough):
        assert runs(ladder(budgets=(budget,), sizes={"d1": smallest}))


def test_the_study_file_of_the_docs_can_be_planned(tmp_path):
    text = (ROOT / "docs" / "studies.md").read_text()
    (tmp_path / "study.py").write_text(re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1))
    planned = declaration.runs(declaration.load(str(tmp_path / "study.py")), 257)
    assert [sum(run.stage == stage for run in planned) for stage in declaration.STAGES] == [20, 0, 40, 1]


def test_a_batch_ramp_is_counted_in_a_budget():
    ramped = base()
    ramped.train = dict(batch_size=8, batch_ramp_start=2, batch_ramp_increment=2, batch_ramp_tokens=2000)
    run = runs(ladder(base=ramped, budgets=(1e10,)))[1]
    assert schedule.batch_size(run.config, 0) == 2 and schedule.batch_size(run.config, run.config.train.steps - 1) == 8
    assert flops.train_flops(run.config) == pytest.approx(1e10, rel=0.01)


def test_lengths_may_be_tokens_or_tokens_a_parameter():
    by_tokens = runs(ladder(budgets=None, tokens=(100_000,)))
    assert {round(schedule.run_tokens(run.config), -3) for run in by_tokens} == {100_000}
    for run in runs(ladder(budgets=None, tokens_per_param=(20,))):
        params = flops.parameters(run.config.model).total
        assert schedule.run_tokens(run.config) == pytest.approx(20 * params, rel=0.01)
    with pytest.raises(UserError, match="from one of budgets, tokens, tokens_per_param"):
        ladder(tokens=(1e5,))


def test_keep_leaves_runs_out_and_a_name_twice_is_refused():
    kept = runs(ladder(keep=lambda factors: factors["size"] != "d4" or factors["budget"] > 1e10))
    assert [run.name for run in kept if run.factors["size"] == "d4"] == ["d4-C1e+11-seed0"]
    with pytest.raises(UserError, match="declares d1-C1e\\+10-seed0 twice"):
        runs(ladder(budgets=(1e10, 1e10)))


def test_tuned_runs_wait_for_the_losses_of_their_size_and_take_the_best_learning_rate():
    declared = ladder(learning_rate=study.tuned([1e-3, 4e-3], budget=1e10), targets=(target(),))
    waiting = runs(declared)
    tuning = [run.name for run in waiting if run.stage == "tune"]
    assert len(tuning) == 6 and all(run.config is None for run in waiting if run.stage != "tune")
    losses = {name: 2.0 if "lr0.004" in name else 3.0 for name in tuning}
    losses["tune-d4-lr0.004-seed0"] = math.inf  # it diverged
    resolved = {run.name: run.config.optim.peak_lr for run in runs(declared, losses)}
    assert resolved["d2-C1e+10-seed0"] == 4e-3 and resolved["d4-C1e+11-seed0"] == 1e-3
    assert resolved["target-d6-C1e+12-seed0"] == 1e-3, "as the nearest size, d4"
    one_missing = {name: loss for name, loss in losses.items() if name != tuning[0]}
    assert [run.name for run in runs(declared, one_missing) if run.config is None] == [
        "d1-C1e+10-seed0",
        "d1-C1e+11-seed0",
    ]
    with pytest.raises(UserError, match="every tuning run diverged"):
        runs(declared, dict.fromkeys(tuning, math.inf))


def target():
    return study.Target(study.by_depth([6], aspect=16, head_dim=16), 1e12)


def test_branches_leave_a_trunk_before_their_cooldowns_and_have_its_learning_rates():
    planned = runs(ladder(cooldown=0.2))
    trunk = next(run for run in planned if run.name == "trunk-d2-C1e+11-seed0")
    branches = [run for run in planned if run.branch and run.branch.trunk == trunk.name]
    assert [run.factors["budget"] for run in branches] == [1e10, 1e11]
    assert trunk.config.checkpoint.keep_steps == tuple(run.branch.step for run in branches)
    assert trunk.config.train.steps == branches[-1].branch.step
    for run in branches:
        steps = run.config.train.steps
        assert run.branch.step / steps == pytest.approx(0.8, abs=0.01)
        for step in range(run.branch.step):
            assert schedule.learning_rate(run.config, step) == schedule.learning_rate(trunk.config, step)
        assert schedule.learning_rate(run.config, run.branch.step) < run.config.optim.peak_lr


def test_branches_need_one_learning_rate_for_all_budgets():
    with pytest.raises(UserError, match="branches of one trunk need one optim.peak_lr"):
        runs(ladder(cooldown=0.2, learning_rate=recipes.deepseek_lr()))


def test_shapes_follow_from_one_dial():
    depth = study.by_depth([4, 12], head_dim=64)
    assert depth["d12"] == {"model.n_layers": 12, "model.d_model": 768, "model.n_heads": 12}
    width = study.by_width([128, 256], n_layers=2, head_dim=32, mlp="relu2")
    assert width["w256"]["model.n_heads"] == 8 and width["w128"]["model.mlp"] == "relu2"
    with pytest.raises(UserError, match="not a multiple of head_dim=64"):
        study.by_width([100], n_layers=2)
    sizes = study.by_params([1e4, 3e4, 1e5, 3e5, 1e6, 3e6], aspect=32, head_dim=8)
    for wanted, shape in zip([1e4, 3e4, 1e5, 3e5, 1e6, 3e6], sizes.values()):
        assert 12 * shape["model.n_layers"] * shape["model.d_model"] ** 2 == pytest.approx(wanted, rel=0.35)


@pytest.mark.parametrize(
    "rule, expected",
    [  # hand-worked for 124,439,808 parameters (85,056,000 without embeddings), C = 1e19, 1024 tokens a sequence
        (recipes.fixed(0.5), 0.5),
        (recipes.kaplan_lr(), 0.003239 - 0.0001395 * 18.2588),
        (recipes.deepseek_lr(), 0.3118 * 10**-2.375),
        (recipes.porian_lr(), 0.0047 / (124.439808 / 108) ** (1 / 3)),
        (recipes.sqrt_batch_lr(1e-3, 131_072), 2e-3),
        (recipes.kaplan_batch(3.0), round(2e8 / 3.0**4.7619 / 1024)),
        (recipes.deepseek_batch(), round(0.2920 * 10**6.2149 / 1024)),
        (recipes.porian_batch(), round(2 * 160 * (124.439808 / 108) ** (2 / 3))),
        (recipes.warmup_fraction(0.02), 0.02 * 2.5e9 / 524_288),
        (recipes.porian_warmup(), 124_439_808 / 524_288),
    ],
)
def test_rules_give_what_their_papers_say(rule, expected):
    from gptjax.config.fields import Config, ModelConfig, TrainConfig

    config = Config(model=ModelConfig(vocab_size=50257), train=TrainConfig(steps=1, batch_size=512))
    assert rule(recipes.Facts(config, 1e19, 2.5e9)) == pytest.approx(expected, rel=1e-4)


def test_a_rule_changes_batch_length_and_warmup_together():
    rules = dict(
        batch=recipes.fixed(8), warmup=recipes.warmup_fraction(0.1), learning_rate=recipes.sqrt_batch_lr(1e-3, 128)
    )
    for run in runs(ladder(**rules)):
        assert run.config.train.batch_size == 8 and run.config.optim.peak_lr == pytest.approx(1e-3 * math.sqrt(2))
        assert run.config.optim.warmup_steps == pytest.approx(0.1 * run.config.train.steps, abs=1)


def test_evaluations_are_spread_over_a_run_and_fall_between_calls():
    for run in runs(ladder(evaluations=5)):
        every, per_call = run.config.eval.every_steps, run.config.train.steps_per_call
        assert every % per_call == 0 and 4 <= run.config.train.steps / every <= 5
    assert all(run.config.eval.every_steps is None for run in runs(ladder()))


def test_what_a_file_gets_wrong_is_one_line(tmp_path):
    file = tmp_path / "study.py"
    with pytest.raises(UserError, match="no such file"):
        declaration.load(str(file))
    file.write_text("def get_config(): return {}")
    with pytest.raises(UserError, match="defines no get_study"):
        declaration.load(str(file))
    file.write_text("def get_study(): return {}")
    with pytest.raises(UserError, match="returned dict; expected a gptjax.study.Study"):
        declaration.load(str(file))
    with pytest.raises(UserError, match="unknown model field 'n_layer'; did you mean"):
        runs(ladder(sizes={"a": {"model.n_layer": 2}}))
    with pytest.raises(UserError, match="model.vocab_size"):
        config = base()
        config.model.vocab_size = None
        runs(ladder(base=config))


def test_a_base_may_be_a_config_file_beside_the_study(tmp_path):
    (tmp_path / "base.py").write_text(
        "def get_config(): return {'model': {'vocab_size': 65, 'n_layers': 3, 'd_model': 48}}"
    )
    (tmp_path / "study.py").write_text(
        "from gptjax import study\n"
        "def get_study():\n"
        "    return study.Study('base.py', sizes={'a': {'model.n_heads': 4}}, tokens=(5.3e7,), batch=study.recipes.fixed(1))\n"
    )
    run = runs(declaration.load(str(tmp_path / "study.py")))[0]
    assert run.config.model.n_layers == 3 and run.config.train.batch_size == 1


def test_declared_studies_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ladder().seeds = (1,)
