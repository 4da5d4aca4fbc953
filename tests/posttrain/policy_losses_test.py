"""Losses of reinforcement learning: TRL's, loss and gradients, however a batch is split."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT

from gptjax.config.fields import Config, ModelConfig, TrainConfig
from gptjax.config.rl_fields import RLConfig
from gptjax.errors import UserError
from gptjax.huggingface import gpt2
from gptjax.models import architectures
from gptjax.parallel import meshes, numerics
from gptjax.posttrain import advantages, policy_losses, values
from gptjax.training import losses, step
from gptjax.training import program as programs

GOLDEN = ROOT / "tests" / "golden"
TOLERANCE = 1e-5
MODEL = ModelConfig(vocab_size=40, context_length=16, n_layers=1, d_model=8, n_heads=2, dtype="float32")
RL = RLConfig(prompts="jsonl:prompts.jsonl", rewards="numeric", group=2, temperature=0.8, max_tokens=12)
VARIANTS = {  # of the golden file -> the same here
    "grpo": "grpo(beta=0.04)",
    "grpo_kl_ratio": "grpo(beta=0.3, kl_ratio=True)",
    "grpo_high": "grpo(clip_high=0.28, dual_clip=1.5)",
    "bnpo": "grpo(beta=0.04, aggregate='token')",
    "dapo": "dapo",
    "dr_grpo": "grpo(aggregate='constant')",
    "gspo": "gspo(clip=0.2, clip_high=0.2)",
    "token_truncate": "grpo(beta=0.04, correction='token_truncate', cap=1.2)",
    "token_mask": "grpo(correction='token_mask', cap=1.2)",
    "sequence_truncate": "grpo(aggregate='token', correction='sequence_truncate', cap=1.2)",
    "sequence_mask": "grpo(aggregate='token', correction='sequence_mask', cap=1.2)",
    "rloo": "rloo",
}


def golden_script():
    spec = importlib.util.spec_from_file_location("make_policy", GOLDEN / "make_policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = golden_script()


def config_of(loss: str, critic: str | None = None, **train) -> Config:
    return Config(
        model=dataclasses.replace(MODEL, critic=critic),
        train=TrainConfig(steps=4, batch_size=8, loss=loss, **train),
        rl=RL,
    )


def as_tree(arrays: dict[str, np.ndarray]) -> dict:
    """Arrays by their names in a GPT2LMHeadModel, as our parameters are laid out."""
    tree: dict = {}
    for tensor in gpt2.FAMILY.tensors(MODEL):
        layers = [tensor.layout.join([arrays["transformer." + name] for name in names], MODEL) for names in tensor.names(MODEL)]  # fmt: skip
        *parents, last = tensor.ours.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.stack(layers) if tensor.stacked else layers[0]
    return tree


def with_critic(policy: dict, trunk: dict, score_D: np.ndarray) -> dict:
    value = {"weight": score_D[:, None], "bias": np.zeros(1, np.float32)}
    return {**policy, "critic": {"model": trunk, "value": value}}


def before_answer(array_BA, length: int):
    """float32 [B, L]: what is of each answer's token, where it is predicted; 0 elsewhere."""
    placed_BL = np.zeros((len(array_BA), length - 1), np.float32)
    placed_BL[:, SCRIPT.PROMPT - 1 :] = array_BA
    return placed_BL


def golden_batch() -> dict[str, np.ndarray]:
    given = SCRIPT.batch()
    length = given["token_BT"].shape[1]
    at = {"weight_BL": "weight_BA", "old_BL": "old_BA", "reference_BL": "reference_BA"}
    batch = {name: before_answer(given[theirs], length) for name, theirs in at.items()}
    batch["logprob_BL"] = batch["old_BL"]
    batch["sampler_BL"] = before_answer(given["sampler_BA"], length)
    return batch | {"token_BT": given["token_BT"], "advantage_BL": given["advantage_B"][:, None] * batch["weight_BL"]}


def gradients(config: Config, params: dict, batch: dict, n_devices: int = 1):
    """(gradients, metrics) of the step's own mean."""
    program = programs.build(config, meshes.make_mesh(config, jax.devices()[:n_devices]), "xla")
    state = step.TrainState(np.zeros((), np.int32), params, None, None)
    spec = jax.tree.map(lambda place: place.spec, program.param_sharding)
    of = functools.partial(step.mean_gradient, graph=program.graph, config=config, param_spec=spec)
    with numerics.on_mesh(program.mesh):
        return jax.device_get(jax.jit(of)(state, batch))


def assert_close(ours: dict, theirs: dict, tolerance: float = TOLERANCE) -> None:
    """Each array to tolerance of the largest entry of all."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert np.abs(leaf - other).max() <= tolerance * largest, path


# ---- TRL


@pytest.fixture(scope="module")
def ours():
    """{variant: (gradients, metrics)} of the golden batch, in one program, so that the model is compiled once."""
    params, batch = as_tree(SCRIPT.weights(0)), golden_batch()
    graph = architectures.abstract(MODEL)[0]

    def all_of_them(params, batch):
        made = {}
        for name, text in VARIANTS.items():
            config = config_of(text)
            given = batch | {"logprob_BL": batch["sampler_BL"]} if "correction" in text else batch
            given = {name: array for name, array in given.items() if name != "sampler_BL"}
            spec = jax.tree.map(lambda _: None, params)
            state = step.TrainState(np.zeros((), np.int32), params, None, None)
            made[name] = step.mean_gradient(state, given, graph=graph, config=config, param_spec=spec)
        return made

    return jax.device_get(jax.jit(all_of_them)(params, batch))


def assert_as_trl(ours, expected: dict) -> None:
    for name in VARIANTS:
        grads, metrics = ours[name]
        assert metrics["loss"] == pytest.approx(float(expected[f"{name}/loss"]), rel=TOLERANCE, abs=1e-6), name
        assert_close(grads, as_tree(SCRIPT.unpacked(expected[f"{name}/gradient"])))


def test_losses_and_gradients_of_answers_compared_with_one_another_are_those_of_trl(ours):
    assert_as_trl(ours, np.load(GOLDEN / "policy_grpo.npz"))


def test_they_are_those_of_the_trl_installed(ours, monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_as_trl(ours, SCRIPT.expected_grpo())


# ---- PPO


def drawn_logprobs(given) -> np.ndarray:
    """float32 [B, A] of the tokens under the logits that they were drawn from."""
    logprob_BAV = np.asarray(jax.nn.log_softmax(given["logit_BAV"], axis=-1))
    return np.take_along_axis(logprob_BAV, given["token_BT"][:, SCRIPT.PROMPT :, None], axis=-1)[..., 0]


def ppo_batch(params, settings: dict, score_B, config, graph) -> tuple[dict, float]:
    """(batch, mean of the answers' divergence) of the golden rollouts under one of PPO_VARIANTS, by all that we have."""
    given = SCRIPT.rollouts()
    rows = {"token_BT": given["token_BT"]}
    length = given["token_BT"].shape[1]
    sampling = policy_losses.sampling_of(config)
    weight_BL = before_answer(np.ones(given["logit_BAV"].shape[:2], np.float32), length)
    reference = {**params, **as_tree(SCRIPT.weights(1))}

    @jax.jit
    def of_models(params, reference):
        options = {"graph": graph, "config": config}
        logprobs = values.policy_and_critic(reference, rows, sampling=sampling, with_critic=False, **options)
        return logprobs[0], values.values(params, rows, **options)

    reference_BL, value_BL = jax.device_get(of_models(params, reference))
    ended_B = given["token_BT"][:, -1] == SCRIPT.EOS
    answers = advantages.Answers(
        score_B=advantages.with_end_penalty(score_B, ended_B, settings.get("missing_eos_penalty")),
        weight_BL=weight_BL,
        logprob_BL=before_answer(drawn_logprobs(given), length),
        reference_BL=reference_BL,
        value_BL=value_BL,
        kl_coef=settings["kl_coef"],
    )
    kl, rewards = settings.get("kl_estimator", "k1"), settings["whiten_rewards"]
    gae = advantages.of(f"gae(gamma={settings['gamma']}, lam={settings['lam']}, kl={kl!r}, whiten_rewards={rewards})")
    made = gae(answers)
    batch = rows | {"weight_BL": weight_BL, "logprob_BL": answers.logprob_BL, "value_BL": value_BL}
    batch |= {"advantage_BL": made.advantage_BL, "return_BL": made.return_BL}
    return batch, advantages.divergence(answers, kl).sum(-1).mean()


@pytest.fixture(scope="module")
def ppo():
    """(config, parameters) of a policy and a separate critic."""
    params = with_critic(as_tree(SCRIPT.weights(0)), as_tree(SCRIPT.weights(2)), SCRIPT.score_weights(2)[0])
    config = config_of("ppo", "separate")
    return config, params


@pytest.mark.parametrize("name", SCRIPT.PPO_VARIANTS)
def test_an_update_of_ppo_is_trl_s_from_scores_to_gradients(ppo, name):
    assert_ppo_as_trl(ppo, name, np.load(GOLDEN / "policy_ppo.npz"))


def assert_ppo_as_trl(ppo, name: str, expected) -> None:
    config, params = ppo
    settings = SCRIPT.PPO_VARIANTS[name]
    config = config.replace(train={"loss": f"ppo(value_clip={settings.get('cliprange_value', 0.2)})"})
    graph = programs.build(config, meshes.make_mesh(config, jax.devices()[:1]), "xla").graph
    batch, kl = ppo_batch(params, settings, expected[f"{name}/scores"], config, graph)
    grads, metrics = gradients(config, params, batch)
    logged = {"objective/kl": kl, "loss/policy_avg": metrics["loss"], "loss/value_avg": metrics["value_loss"]}
    logged["policy/clipfrac_avg"] = metrics["clip_low"] + metrics["clip_high"]
    logged["val/clipfrac_avg"] = metrics["value_clip"]
    for key, value in logged.items():
        assert value == pytest.approx(float(expected[f"{name}/{key}"]), rel=TOLERANCE, abs=1e-6), key
    policy, trunk = (as_tree(SCRIPT.unpacked(expected[f"{name}/{part}"])) for part in ("policy", "value"))
    critic = grads.pop("critic")
    assert_close(grads, policy)
    assert_close(critic["model"], trunk)
    assert_close(critic["value"]["weight"][:, 0], expected[f"{name}/score"])  # theirs has no bias


def test_an_update_of_ppo_is_that_of_the_trl_installed(ppo, monkeypatch):
    pytest.importorskip("trl.experimental.ppo")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    expected = SCRIPT.expected_ppo()
    for name in SCRIPT.PPO_VARIANTS:
        assert_ppo_as_trl(ppo, name, expected)


# ---- however a batch is split

FULL = dict(  # what a loss may have, in one
    loss="ppo(clip=0.05, ptx_coef=2.0, beta=0.1, correction='token_truncate', cap=1.05, aggregate='sequence')",
    critic="separate(n_layers=2, n_heads=4, d_ff=16)",
)


def full_batch(rows: int) -> dict[str, np.ndarray]:
    """Of all that a loss may read, with answers of unequal lengths."""
    rng = np.random.default_rng(0)
    shape = rows, 12
    batch = {"token_BT": rng.integers(2, 40, (rows, 13)).astype(np.int32)}
    for name in ("logprob_BL", "old_BL", "reference_BL"):
        batch[name] = rng.normal(-3.7, 0.2, shape).astype(np.float32)
    for name in ("advantage_BL", "value_BL", "return_BL"):
        batch[name] = rng.normal(size=shape).astype(np.float32)
    batch["weight_BL"] = (np.arange(12) < rng.integers(1, 13, (rows, 1))).astype(np.float32)
    batch["ptx_token_BT"] = rng.integers(2, 40, (2 * rows, 16)).astype(np.int32)
    weight_BL = (rng.random((2 * rows, 15)) < 0.7).astype(np.float32)
    return batch | {"ptx_weight_BL": policy_losses.ptx_weights(weight_BL, rows)}


def full_config(**sections) -> Config:
    config = config_of(FULL["loss"], FULL["critic"])
    return config.replace(**sections) if sections else config


@pytest.fixture(scope="module")
def whole():
    """(parameters, batch, gradients, metrics) of all rows at once on one device."""
    params = step.init_state(full_config(), "xla").params
    params["critic"]["value"]["weight"] = np.random.default_rng(1).normal(size=(8, 1)).astype(np.float32)
    batch = full_batch(16)
    return params, batch, *gradients(full_config(), params, batch)


@pytest.mark.parametrize(
    "sections, n_devices",
    [
        pytest.param(dict(train=dict(microbatches=4)), 1, marks=pytest.mark.slow),
        (dict(train=dict(microbatches=2), mesh=dict(replica=2, tensor=2)), 8),
    ],
    ids=["microbatches", "microbatches on a mesh"],
)
def test_gradients_and_numbers_don_t_depend_on_how_a_batch_is_split(whole, sections, n_devices):
    params, batch, grads, metrics = whole
    other_grads, other_metrics = gradients(full_config(**sections), params, batch, n_devices)
    assert_close(other_grads, grads)
    assert other_metrics.keys() == metrics.keys()
    for name, value in metrics.items():
        assert other_metrics[name] == pytest.approx(value, rel=1e-4), name


def test_numbers_are_those_of_numpy(whole):
    params, batch, _, metrics = whole
    weight_BL, kept = batch["weight_BL"], batch["weight_BL"] > 0
    error, of_return = (batch["return_BL"] - batch["value_BL"])[kept], batch["return_BL"][kept]
    assert metrics["explained_variance"] == pytest.approx(1 - error.var() / of_return.var(), rel=1e-4)
    assert metrics["length"] == pytest.approx(weight_BL.sum(-1).mean())
    ratio = np.exp(batch["old_BL"] - batch["logprob_BL"])[kept]
    assert metrics["sampler_ratio_mean"] == pytest.approx(ratio.mean(), rel=1e-5)
    assert metrics["sampler_ratio_max"] == pytest.approx(ratio.max(), rel=1e-5)
    config = full_config()
    graph = architectures.abstract(config.model)[0]
    options = {"graph": graph, "config": config, "sampling": policy_losses.sampling_of(config), "with_critic": True}
    of = jax.jit(functools.partial(values.policy_and_critic, **options))
    logprob_BL, entropy_BL, value_BL = jax.device_get(of(params, {"token_BT": batch["token_BT"]}))
    k1 = (logprob_BL - batch["reference_BL"])[kept]
    new = np.exp(logprob_BL - batch["old_BL"])[kept]
    advantage = batch["advantage_BL"][kept]
    near = np.clip(value_BL, batch["value_BL"] - 0.2, batch["value_BL"] + 0.2)[kept]
    errors = np.square(value_BL[kept] - of_return), np.square(near - of_return)
    for name, expected in {
        "kl_k1": k1.mean(),
        "kl_k3": (np.exp(-k1) - 1 + k1).mean(),
        "entropy": entropy_BL[kept].mean(),
        "ratio_mean": new.mean(),
        "ratio_max": new.max(),
        "approx_kl": (new - 1 - np.log(new)).mean(),
        "clip_low": ((new < 0.95) & (advantage < 0)).mean(),
        "clip_high": ((new > 1.05) & (advantage > 0)).mean(),
        "value_loss": np.maximum(*errors).mean() / 2,
        "value_clip": (errors[1] > errors[0]).mean(),
    }.items():
        assert metrics[name] == pytest.approx(expected, rel=1e-4, abs=1e-6), name


def test_text_beside_the_rollouts_adds_gamma_times_the_gradient_of_its_mean_loss(whole):
    params, batch, grads, metrics = whole
    alone = {name: array for name, array in batch.items() if not name.startswith("ptx")}
    without, _ = gradients(config_of(FULL["loss"].replace("ptx_coef=2.0, ", ""), FULL["critic"]), params, alone)
    text = {"token_BT": batch["ptx_token_BT"], "weight_BL": batch["ptx_weight_BL"]}
    policy = {name: tree for name, tree in params.items() if name != "critic"}
    config = Config(model=MODEL, train=TrainConfig(steps=4, batch_size=8))
    of_text, of_text_metrics = gradients(config, policy, text)
    grads, without = dict(grads), dict(without)
    assert_close(grads.pop("critic"), without.pop("critic"))
    assert_close(grads, jax.tree.map(lambda rollouts, text: rollouts + 2.0 * text, without, of_text))
    assert metrics["ptx_loss"] == pytest.approx(of_text_metrics["loss"], rel=1e-5)


def test_before_the_first_update_reinforce_and_a_ratio_have_the_same_gradient():
    config, batch = config_of("reinforce"), full_batch(8)
    graph = architectures.abstract(MODEL)[0]
    params = step.init_state(config, "xla").params

    def objective(text, params, logprob_BL):
        given = batch | {"logprob_BL": jax.lax.stop_gradient(logprob_BL)}
        loss_BL, _ = losses.chosen(text).of_tokens(logprob_BL, given)
        return jnp.sum(loss_BL * batch["weight_BL"])

    def of(params):
        options = {"graph": graph, "config": config, "sampling": policy_losses.sampling_of(config)}
        logprob_BL = values.policy_and_critic(params, batch, with_critic=False, **options)[0]
        return objective("reinforce", params, logprob_BL), objective("grpo", params, logprob_BL)

    reinforce, ratio = jax.device_get(jax.jit(jax.jacrev(of))(params))
    assert_close(reinforce, ratio)


# ---- what is refused


@pytest.mark.parametrize(
    "text, said",
    [
        ("grpo(aggregate='mean')", "aggregate='mean' is not known; expected one of: sequence, token, constant."),
        ("grpo(length=8)", "length=8 with aggregate='sequence'"),
        ("grpo(dual_clip=1.1)", "dual_clip=1.1 cuts ratios that clip lets pass; use more than 1.2."),
        ("ppo(value_coef=-0.1)", "value_coef=-0.1 is negative; use 0 or more"),
        ("dapo(clip=-0.1)", "clip=-0.1 is negative"),
        ("grpo(correction='truncate')", "correction='truncate' is not known"),
        ("grpo(value_coef=0.1)", "grpo has no parameter 'value_coef'"),
        ("ppo", "model.critic=None with train.loss='ppo'; set model.critic='shared' or 'separate'."),
    ],
)
def test_a_loss_that_cannot_be_is_refused_by_name(text, said):
    with pytest.raises(UserError) as error:
        losses.of(config_of(text))
    assert said in str(error.value)


def test_a_critic_that_nothing_trains_and_dropout_are_refused():
    with pytest.raises(UserError, match="leave it out, or use train.loss='ppo'"):
        losses.of(config_of("grpo", "shared"))
    config = config_of("grpo").replace(model=dict(residual_dropout=0.1))
    with pytest.raises(UserError, match="set every dropout of model to 0"):
        losses.of(config)
