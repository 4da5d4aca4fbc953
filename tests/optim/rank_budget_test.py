"""AdaLoRA: the penalty on its matrices, and the ranks that training gives up. Golden: tests/golden/make_adalora.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from places import ROOT

from gptjax import cli
from gptjax.config import catalogue
from gptjax.config.fields import Config, ModelConfig, OptimConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.huggingface import importing, peft
from gptjax.optim import rank_budget
from gptjax.parallel import numerics, sharding
from gptjax.run import run
from gptjax.training import program as programs
from gptjax.training import step

GOLDEN = ROOT / "tests" / "golden"
STEPS, BATCH, LENGTH = 6, 8, 16
ADAPTER = "adalora(rank=4, target=2, on='all', steps_before=1, steps_after=2, every=2)"
MODEL = ModelConfig(
    vocab_size=65,
    context_length=LENGTH,
    n_layers=2,
    d_model=32,
    n_heads=4,
    init_std=0.1,
    dtype="float32",
    norm="rmsnorm",
    position="rope",
    mlp="swiglu",
    n_kv_heads=2,
    bias=False,
    adapter=ADAPTER,
)
BASE = Config(
    model=MODEL,
    optim=OptimConfig(eps=1e-2, ema_decay=0.5, skip="nonfinite"),
    train=TrainConfig(steps=STEPS, batch_size=BATCH, microbatches=2, log_every=1),
)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """(run of a GPT-2 of transformers, run of PEFT's AdaLoRA on it)."""
    folder = tmp_path_factory.mktemp("imported")
    importing.import_folder(str(GOLDEN / "peft/gpt2"), str(folder / "base"), tokenizer="ids")
    peft.import_adapter(str(GOLDEN / "peft/gpt2/adalora"), str(folder / "base"), str(folder / "adapter"))
    return folder / "base", folder / "adapter"


def test_losses_and_kept_ranks_of_every_step_are_peft_s(imported):
    expected, loaded = np.load(GOLDEN / "adalora.npz"), run.load(imported[1])
    optim = dict(name="sgd", momentum=0.0, weight_decay=0.0, clip_norm=None, skip="none", ema_decay=None)
    config = BASE.replace(
        optim=optim, train=dict(steps=8, microbatches=1), model=dataclasses.asdict(loaded.config.model)
    )
    token_BT = jnp.asarray(np.load(GOLDEN / "peft/gpt2/adalora/expected.npz")["token_BL"], jnp.int32)
    batch = {"token_BT": token_BT, "weight_BL": jnp.ones((token_BT.shape[0], token_BT.shape[1] - 1))}
    program = programs.of(config, jax.devices()[:1])
    spec = jax.tree.map(lambda place: place.spec, program.state_sharding.params)
    with numerics.on_mesh(program.mesh):
        state = program.init()._replace(params=jax.tree.map(jnp.array, loaded.params))
        one = jax.jit(functools.partial(step.train_step, graph=program.graph, config=config, param_spec=spec))
        for number in range(1, 9):
            state, metrics = one(state, batch, 0.5)
            objective = metrics["loss"] + 0.5 * metrics["penalty"]
            assert float(objective) == pytest.approx(float(expected[f"loss/{number}"]), rel=1e-5)
            kind = catalogue.adapter(config.model.adapter)
            theirs = {name: array for name, array in expected.items() if name.endswith(f"lora_E/{number}")}
            ours = peft.tensors_out(kind, dataclasses.replace(config.model, adapter=None), jax.device_get(state.params))
            kept = 0
            for name, array in theirs.items():
                mine = ours[name.rpartition("/")[0]]
                assert np.array_equal(mine != 0, array != 0) and np.allclose(mine, array, atol=2e-5), name
                kept += (array != 0).sum()
            assert float(metrics["ranks"]) == pytest.approx(kept / len(theirs))


def test_an_adapter_with_lost_ranks_comes_from_peft_s_files(imported, tmp_path, capsys):
    expected = np.load(GOLDEN / "adalora.npz")["pruned/logits"]
    command = ["import", str(GOLDEN / "adalora_pruned"), "--from=peft", f"--base={imported[0]}"]
    assert cli.main([*command, f"--workdir={tmp_path / 'run'}"]) == 0
    token_BL = np.load(GOLDEN / "peft/gpt2/adalora/expected.npz")["token_BL"]
    loaded = run.load(tmp_path / "run")
    assert abs(loaded.logits(token_BL) - expected).max() <= 1e-5 * abs(expected).max()
    assert abs(loaded.merged().logits(token_BL) - expected).max() <= 1e-5 * abs(expected).max()
    assert cli.main(["export", str(tmp_path / "run"), "--to=peft", f"--out={tmp_path / 'out'}"]) == 0
    theirs = pytest.importorskip("peft")
    import torch
    import transformers

    base = transformers.GPT2LMHeadModel.from_pretrained(GOLDEN / "peft/gpt2")
    model = theirs.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    logits = model(input_ids=torch.from_numpy(token_BL)).logits.detach().numpy()
    assert abs(logits - expected).max() <= 1e-5 * abs(expected).max()


def test_parts_of_a_matrix_that_is_one_in_peft_s_model_are_not_exported(imported):
    loaded = run.load(imported[0])
    kind = catalogue.adapter("adalora(on='q,v')")
    with pytest.raises(UserError, match="has q and v of attn.c_attn, which are one matrix in PEFT's model"):
        peft.config_out(kind, loaded.config.model)


@functools.cache
def trained(config, devices: int) -> tuple:
    """(state on the host, metrics) after all steps of a Config."""
    program = programs.of(config, jax.devices()[:devices])
    rng = np.random.default_rng(0)
    token_SBT = rng.integers(0, 65, (STEPS, BATCH, LENGTH + 1)).astype(np.int32)
    batch = {"token_BT": token_SBT, "weight_BL": np.ones((STEPS, BATCH, LENGTH), np.float32)}
    with numerics.on_mesh(program.mesh):
        state, metrics = program.train(program.init(), batch, np.full(STEPS, 0.05, np.float32))
        return sharding.on_host(state.params), jax.device_get(metrics)


@pytest.mark.slow
def test_ranks_fall_to_the_target_and_stay():
    params, metrics = trained(BASE, 1)
    assert metrics["ranks"].tolist()[0] == 4 and metrics["ranks"].tolist()[-3:] == [2, 2, 2]
    assert metrics["penalty"][-1] < metrics["penalty"][0]
    kept = [(leaf != 0).sum() for name, leaf in flatten_dict(params, sep="/").items() if name.endswith("/E")]
    assert sum(kept) == 2 * 2 * 7


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [dict(fsdp=4, tensor=2), dict(fsdp=2, stage=2, tensor=2)], ids=["fsdp", "pipeline"])
def test_every_mesh_gives_up_the_ranks_of_one_device(mesh):
    expected, numbers = trained(BASE, 1)
    params, on_mesh = trained(BASE.replace(mesh=mesh), 8)
    assert np.allclose(on_mesh["loss"], numbers["loss"], rtol=1e-5)
    assert np.allclose(on_mesh["penalty"], numbers["penalty"], rtol=1e-5)
    for name, leaf in flatten_dict(expected, sep="/").items():
        assert np.allclose(leaf, flatten_dict(params, sep="/")[name], atol=2e-5), name


@pytest.mark.slow
def test_two_microbatches_have_the_penalty_of_one():
    (_, two), (_, one) = trained(BASE, 1), trained(BASE.replace(train=dict(microbatches=1)), 1)
    assert np.allclose(two["penalty"], one["penalty"], rtol=1e-6) and np.allclose(two["loss"], one["loss"], rtol=1e-5)


def test_the_budget_falls_with_the_cube_of_the_steps_that_are_left():
    spec = catalogue.adapter("adalora(rank=12, target=8, steps_before=10, steps_after=20)")
    assert [int(rank_budget.budget(at, 6, spec, 80)) for at in (5, 10, 45, 80, 90)] == [72, 72, 48 + 24 // 8, 48, 48]


@pytest.mark.parametrize(
    "adapter, message",
    [
        ("adalora(rank=4, target=5)", "target=5 is more than rank=4"),
        ("adalora(beta1=1.0)", "beta1=1.0 is not between 0 and 1"),
        ("adalora(every=0)", "every=0 is too small"),
        ("adalora(steps_before=-1)", "steps_before=-1 must not be negative"),
    ],
)
def test_what_cannot_be_is_refused(adapter, message):
    with pytest.raises(UserError, match=message):
        BASE.replace(model=dict(adapter=adapter))


def test_a_schedule_without_steps_to_choose_in_and_an_adapter_trained_in_part_are_refused():
    with pytest.raises(UserError, match="leaves no step to give up ranks in: the run has 6 steps"):
        rank_budget.check(BASE.replace(model=dict(adapter="adalora(steps_before=4, steps_after=2)")))
    with pytest.raises(UserError, match="leaves out blocks/.*gives up ranks by the gradients of all"):
        programs.of(BASE.replace(train=dict(trainable="blocks[1:]/*adapter/*")), jax.devices()[:1])
