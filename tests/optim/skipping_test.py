import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from conftest import TINY

from gptjax.config.fields import CheckpointConfig, Config, EvalConfig, OptimConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.optim import skipping
from gptjax.parallel import meshes
from gptjax.training import program as programs

S, B, L, POISON = 3, 8, TINY.context_length, 64  # a token whose embedding is NaN
CASES = {
    "sharded": dict(optim=dict(ema_decay=0.9), mesh=dict(fsdp=2, tensor=2), train=dict(microbatches=2)),
    "bfloat16": dict(optim=dict(param_dtype="bfloat16", moment_dtype="bfloat16"), mesh=dict(fsdp=1)),
    "muon": dict(optim=dict(name="muon"), mesh=dict(fsdp=4)),
    "adafactor": dict(optim=dict(name="adafactor"), mesh=dict(replica=2)),
    "pipeline": dict(optim=dict(ema_decay=0.9), mesh=dict(stage=2)),
}


def build(name):
    config = Config(
        model=dataclasses.replace(TINY, tied_head=False),
        optim=OptimConfig(skip="nonfinite"),
        train=TrainConfig(steps=S, batch_size=B, steps_per_call=S, log_every=S),
        checkpoint=CheckpointConfig(every_steps=S),
        eval=EvalConfig(every_steps=S),
    )
    config = config.replace(**CASES[name])
    sizes = [size for size in dataclasses.asdict(config.mesh).values() if isinstance(size, int) and size > 1]
    mesh = meshes.make_mesh(config, jax.devices()[: int(np.prod(sizes))])
    return programs.build(config, mesh, "xla")


def poisoned(program):
    """A state in which one token's embedding is NaN: a step that reads that token has no finite loss, others have."""
    state = program.init()
    embedding = jax.tree.map(lambda a: a.at[POISON].set(jnp.nan), state.params["token_embedding"])
    state = state._replace(params=state.params | {"token_embedding": embedding})
    return jax.tree.map(jax.device_put, state, program.state_sharding)


def call(program, start, batches):
    """(state, metrics) of one dispatch of S steps. start: kept, the program donates a copy."""
    token_SBT = np.stack(batches)
    batch = {"token_BT": token_SBT, "weight_BL": np.ones(token_SBT[..., 1:].shape, np.float32)}
    batch = jax.tree.map(lambda a: jax.device_put(a, program.train_batch_sharding), batch)
    state, numbers = program.train(jax.tree.map(jnp.copy, start), batch, np.full(S, 1e-2, np.float32))
    return state, jax.device_get(numbers)


def tokens(seed, bad=False):
    token_BT = np.random.default_rng(seed).integers(0, POISON, (B, L + 1), np.int32)
    if bad:
        token_BT[3, 5] = POISON
    return token_BT


def assert_same_bits(a, b):
    def check(x, y):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()

    kept = dict(step=None, skips=None)
    jax.tree.map(check, a._replace(**kept), b._replace(**kept))


@pytest.mark.parametrize("name", runs.default_or_slow(CASES, ("sharded",)))
def test_an_update_left_out_never_happened(name):
    program = build(name)
    bad, good = [tokens(i, bad=True) for i in range(3)], tokens(7)
    with jax.set_mesh(program.mesh):
        start = poisoned(program)
        idle, numbers = call(program, start, bad)
        assert_same_bits(start, idle)
        assert int(idle.step) == S and jax.tree.map(int, idle.skips) == {"skipped": S, "in_a_row": S}
        assert numbers["skipped_in_a_row"].tolist() == [1, 2, 3] and np.isnan(numbers["loss"]).all()
        assert not numbers["update_norm"].any()
        # The next step is one from the state as it was, at the step that it is.
        after, _ = call(program, idle, [good, bad[0], bad[1]])
        same, numbers = call(program, start._replace(step=idle.step), [good, bad[0], bad[1]])
        assert_same_bits(after, same)
        assert numbers["skip_reason"].tolist() == [0, 1, 1] and np.isfinite(numbers["loss"][0])
        with pytest.raises(AssertionError):
            assert_same_bits(start, after)
        if name != "bfloat16":  # without randomness it matters only which updates are made, not when
            for batches in ([bad[2], good, bad[0]], [bad[0], bad[1], good]):
                assert_same_bits(after, call(program, start, batches)[0])


def test_outliers_are_judged_by_the_last_updates_that_were_made():
    optim = OptimConfig(skip="outliers", skip_window=8, skip_sigma=3.0)
    rng, judge = np.random.default_rng(0), jax.jit(lambda skips, a, b: skipping.judge(skips, a, b, optim))
    loss, norm = 5 + rng.standard_normal(60), np.exp(rng.standard_normal(60) / 4)
    loss[[3, 20, 21, 40]] = [100, 9.9, 1e9, np.nan]
    norm[[21, 22, 30, 50]] = [np.inf, 1e6, np.nan, 0.0]
    skips, made, reasons = skipping.initial(optim), [], []
    for pair in zip(np.float32(loss), np.float32(norm)):
        taken, skips, numbers = judge(skips, *pair)
        reasons.append(int(numbers["skip_reason"]))
        expected = 1 if not np.isfinite(pair[0]) else 2 if not np.isfinite(pair[1]) else 0
        if len(made) >= 4 and not expected:
            window = np.float64(made[-8:])
            scores = (np.float64(pair) - window.mean(0)) / window.std(0)
            np.testing.assert_allclose([numbers["loss_z"], numbers["grad_norm_z"]], scores, rtol=1e-4, atol=1e-4)
            expected = 3 if scores[0] > 3 else 4 if scores[1] > 3 else 0
        assert reasons[-1] == expected and bool(taken) == (expected == 0)
        made += [pair] if taken else []
    assert {1, 2, 3, 4} <= set(reasons) and reasons[3] == 0 and reasons[50] == 0, "too early; too small"
    assert int(skips["skipped"]) == np.count_nonzero(reasons) and int(skips["taken"]) == len(made)


def test_equal_numbers_are_no_outliers_whatever_their_rounding():
    value_W = jnp.full(128, 2.3456789)
    assert float(skipping.z_score(value_W[0] * (1 + 2e-7), value_W, 1000)) < 1


@pytest.mark.parametrize(
    "fields,message",
    [
        (dict(skip="nan"), "optim.skip='nan' is not known; expected one of: none, nonfinite, outliers"),
        (dict(skip_window=1), "optim.skip_window=1 is too small; use at least 2"),
        (dict(skip_sigma=0.0), "optim.skip_sigma=0.0 must be positive"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Config(train=TrainConfig(steps=1), optim=OptimConfig(**fields))
