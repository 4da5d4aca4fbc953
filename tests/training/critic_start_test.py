"""A critic beside a policy: where it starts, how fast it learns, and that a run with one is read without it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import runs
from flax.traverse_util import flatten_dict

import gptjax
from gptjax import cli, flops
from gptjax.config.config_file import from_dict
from gptjax.config.fields import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from gptjax.data.tokenizers.simple import ByteTokenizer
from gptjax.errors import UserError
from gptjax.models import architectures
from gptjax.optim.optimizers import make_optimizer
from gptjax.rundir import model_directory, run_directory
from gptjax.training import starting
from gptjax.training.session import prepare

SMALL = ModelConfig(vocab_size=257, context_length=16, n_layers=1, d_model=16, n_heads=2, dtype="float32")
CRITIC = "separate(n_layers=2, d_ff=32)"


def write_run(path, model: ModelConfig, seed: int, **sections) -> dict:
    """A run of a model with random parameters, which are returned by name."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), architectures.abstract(model)[1]
    )
    config = dataclasses.replace(Config(train=TrainConfig(steps=1, batch_size=8)), model=model, **sections)
    model_directory.write(run_directory.open_run(path), config, params, ByteTokenizer(), {})
    return flatten_dict(params, sep="/")


@pytest.fixture(scope="module")
def origins(tmp_path_factory):
    """(folder, parameters of its run "policy", of its run "reward")."""
    folder = tmp_path_factory.mktemp("critic")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{i}+1="}) + "\n" for i in range(16)))
    policy = write_run(folder / "policy", SMALL, 0)
    shape = dataclasses.replace(SMALL, n_layers=2, d_ff=32, tied_head=False, task_head="score")
    preferences = dict(data=DataConfig(source="jsonl", path="pairs.jsonl", preferences="compared", chat="gptjax"), train=TrainConfig(steps=1, batch_size=8, loss="reward"))  # fmt: skip
    return folder, policy, write_run(folder / "reward", shape, 1, **preferences)


def values_of(folder, **sections) -> dict:
    values = dict(
        model=dataclasses.asdict(SMALL) | dict(critic=CRITIC),
        data=dict(tokenizer="bytes", val_fraction=0.5),
        optim=dict(peak_lr=1e-3, schedule="constant", clip_norm=None, weight_decay=0.0),
        train=dict(steps=2, batch_size=8, loss="ppo", start_from=str(folder / "policy"), critic_from=str(folder / "reward"), log_every=1, tensorboard=False),
        rl=dict(prompts=f"jsonl:{folder}/prompts.jsonl", rewards="length(target=2)", advantage="gae", group=1, max_tokens=4),
        checkpoint=dict(every_steps=1, keep=9),
        mesh=dict(fsdp=4, tensor=2),
        eval=dict(every_steps=None),
    )  # fmt: skip
    return runs.changed(values, **sections)


def train(workdir, values) -> int:
    file = runs.write_config(values, workdir.with_name(f"{workdir.name}.py"))
    return cli.main(["train", file, f"--workdir={workdir}"])


@pytest.fixture(scope="module")
def trained(origins):
    """A run of two iterations whose critic started from the reward model."""
    workdir = origins[0] / "ppo"
    assert train(workdir, values_of(origins[0])) == 0
    return workdir


def test_a_critic_starts_as_the_reward_model_with_its_score_head_and_says_so(origins, trained, capsys):
    _, policy, reward = origins
    ours = runs.saved_arrays(trained, 0, ("params",))
    ours = {
        name.removeprefix("params['").removesuffix("']").replace("']['", "/"): array for name, array in ours.items()
    }
    for name, array in policy.items():
        np.testing.assert_array_equal(ours.pop(name), array)
    for name, array in reward.items():
        if name != "head":
            name = name.replace("task_head", "critic/value") if "task_head" in name else f"critic/model/{name}"
            np.testing.assert_array_equal(ours.pop(name), array)
    assert not ours
    started = run_directory.open_run(trained).manifest()["started_from"]
    assert started["critic"]["run"].endswith("/reward") and started["initialised"] == []
    assert started["critic"]["checkpoint_sha256"] is not None


def test_a_run_with_a_critic_is_read_evaluated_and_exported_without_it(trained, tmp_path):
    run = gptjax.load(trained)
    assert run.model_config.critic is None and "critic" not in run.params
    saved = runs.saved_arrays(trained, 2, ("params",))
    np.testing.assert_array_equal(run.params["token_embedding"], saved["params['token_embedding']"])
    assert run.generate("1+1=", max_tokens=2, temperature=0)[0].text == gptjax.load(trained).generate("1+1=", max_tokens=2, temperature=0)[0].text  # fmt: skip
    assert np.isfinite(run.loss("1+1=2").mean)
    assert cli.main(["export", f"--workdir={trained}", f"--out={tmp_path / 'hf'}", "--to=hf"]) == 0
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["n_layer"] == 1


def test_a_run_without_a_critic_starts_from_the_policy_of_one_that_has_it(origins, trained, tmp_path):
    values = values_of(
        origins[0], model=dict(critic=None), train=dict(loss="grpo", start_from=str(trained), critic_from=None)
    )
    config = from_dict(runs.changed(values, rl=dict(advantage="baseline")))
    session = prepare(config)
    found = starting.lineage(run_directory.open_run(tmp_path / "new"), session.config, session.store, session.program.abstract_params)  # fmt: skip
    assert found["started_from"]["initialised"] == [] and "critic" not in found["started_from"]


@pytest.mark.parametrize(
    "sections, said",
    [
        (dict(train=dict(start_from=None)), "train.critic_from='FOLDER/reward' needs train.start_from"),
        (dict(model=dict(critic="shared")), "is of a critic that is a model of its own, and model.critic='shared'"),
        (dict(model=dict(critic="separate")), "it does not make this critic: critic/model/blocks/"),
        (dict(model=dict(critic="separate(depth=2)")), "separate has no parameter 'depth'"),
        (dict(model=dict(critic="separate(n_heads=3)")), "model.critic='separate(n_heads=3)': model.n_heads=3 does not divide"),
        (dict(optim=dict(layer_lr_decay=0.9)), "optim.layer_lr_decay=0.9 is of one model's layers"),
        (dict(model=dict(critic="twin")), "model.critic='twin'"),
        (dict(train=dict(critic_from="FOLDER/none")), "none"),
        (dict(model=dict(critic="separate", parametrization="mup", base_width=8)), "use 'standard', or model.critic='shared'"),
        (dict(optim=dict(critic_lr_ratio=-1.0)), "optim.critic_lr_ratio=-1.0 is too small"),
    ],
)  # fmt: skip
def test_a_critic_that_cannot_be_is_refused(origins, tmp_path, capsys, sections, said):
    folder = str(origins[0])
    sections = json.loads(json.dumps(sections).replace("FOLDER", folder))
    assert train(tmp_path / "refused", values_of(origins[0], **sections)) == 2
    error = capsys.readouterr().err
    assert said.replace("FOLDER", folder) in error and error.count("\n") == 1


def test_a_critic_needs_reinforcement_learning():
    with pytest.raises(UserError, match="model.critic='shared' is of reinforcement learning, but rl.prompts is None"):
        Config(model=ModelConfig(critic="shared"), train=TrainConfig(steps=1))


def test_the_policy_is_initialised_as_without_a_critic_and_counted_alone():
    alone = architectures.make(SMALL, jax.random.key(0))
    for critic, entries in (("shared", 17), (CRITIC, None)):
        model = dataclasses.replace(SMALL, critic=critic)
        made = architectures.split(architectures.make(model, jax.random.key(0)))[1]
        of_critic = made.pop("critic")
        jax.tree.map(np.testing.assert_array_equal, made, architectures.split(alone)[1])
        counted = sum(leaf.size for leaf in jax.tree.leaves(of_critic))
        assert counted == flops.critic_parameters(model) == (entries or counted)
        assert flops.parameters(model).total == flops.parameters(SMALL).total


def test_a_critic_learns_at_a_share_of_the_rate():
    model = dataclasses.replace(SMALL, critic="shared")
    params = architectures.split(architectures.make(model, jax.random.key(0)))[1]
    grads = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), params)
    whole, share = (
        flatten_dict(jax.device_get(optimizer.update(grads, optimizer.init(params), params)[0]))
        for optimizer in (make_optimizer(OptimConfig(critic_lr_ratio=ratio), model, None) for ratio in (1.0, 0.25))
    )
    for path, update in whole.items():
        np.testing.assert_allclose(share[path], update * (0.25 if path[0] == "critic" else 1), rtol=1e-6)
