"""Runs that train an adapter on another run's parameters: what they save, where the rest lies, how they go on."""

import json
import shutil

import damage
import numpy as np
import pytest
import runs
from flax.traverse_util import flatten_dict
from judging import trained_values

from gptjax import cli
from gptjax.errors import UserError
from gptjax.models import nf4
from gptjax.run import run
from gptjax.rundir import run_directory

STEPS = 4
ADAPTER = "dora(rank=2, on='all', dropout=0.1)"


def adapted(values, origin, **model) -> dict:
    """A config that trains an adapter on a run of `trained_values`."""
    return runs.changed(
        trained_values(values),
        model=dict(adapter=ADAPTER) | model,
        optim=dict(peak_lr=0.05),
        train=dict(steps=STEPS, start_from=str(origin)),
        checkpoint=dict(every_steps=2, keep=9),
        eval=dict(every_steps=None),
    )


def train(values, workdir) -> int:
    return cli.main(
        ["train", runs.write_config(values, workdir.with_name(f"{workdir.name}.py")), f"--workdir={workdir}"]
    )


@pytest.fixture(scope="module")
def base(trained, tmp_path_factory):
    return shutil.copytree(trained, tmp_path_factory.mktemp("base") / "run")


@pytest.fixture(scope="module")
def adapter(values, base):
    """A run of 4 steps that has trained an adapter on `base`."""
    workdir = base.with_name("adapter")
    assert train(adapted(values, base), workdir) == 0
    return workdir


def names(tree) -> dict:
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(tree, sep="/").items()}


def test_a_step_holds_the_adapter_alone_and_is_read_with_its_base(adapter, base):
    for step in (0, STEPS):
        saved = runs.saved_arrays(adapter, step, ("params", "opt_state", "ema"))
        assert saved and all("adapter" in name or "count" in name for name in saved), saved.keys()
    params, theirs = names(run.load(adapter).params), names(run.load(base).params)
    assert all(np.array_equal(array, params[name]) for name, array in theirs.items())
    changed = {name for name in params if name.rpartition("/")[2] in ("B", "magnitude") and params[name].any()}
    assert len(changed) == 2 * 6 and changed <= params.keys() - theirs.keys()
    assert run.load(adapter, 0).evaluate() == run.load(base).evaluate()
    assert run.load(adapter).evaluate() != run.load(base).evaluate()
    assert run.load(adapter, ema=True).loss("abc").mean != run.load(base).loss("abc").mean


def size_of(workdir, step: int) -> int:
    """Bytes of a checkpoint's files."""
    return sum(file.stat().st_size for file in (workdir / "checkpoints" / str(step)).rglob("*") if file.is_file())


@pytest.mark.slow
def test_a_checkpoint_of_an_adapter_is_at_most_a_tenth_of_its_base_s(values, base):
    """Of base and adapter trained alike, with moments and average."""
    wide = dict(d_model=256, n_layers=2, n_heads=4)
    origin, workdir = base.with_name("wide"), base.with_name("thin")
    assert train(runs.changed(trained_values(values), model=wide, train=dict(steps=2)), origin) == 0
    assert train(adapted(values, origin, adapter="lora(rank=4, on='all')", **wide), workdir) == 0
    assert size_of(workdir, STEPS) <= size_of(origin, 2) / 10


def test_it_goes_on_bit_equal_after_a_kill(adapter, values, base):
    disturbed = shutil.copytree(adapter, adapter.with_name("disturbed"))
    shutil.rmtree(disturbed / "checkpoints" / "4")
    assert train(adapted(values, base), disturbed) == 0
    assert runs.losses(disturbed) == runs.losses(adapter)
    before, after = (runs.saved_arrays(each, STEPS) for each in (adapter, disturbed))
    assert before.keys() == after.keys() and all(np.array_equal(array, after[name]) for name, array in before.items())


@pytest.mark.slow
def test_an_adapter_that_gives_up_ranks_goes_on_bit_equal_after_a_kill(values, base, capsys):
    """Importance is in its checkpoints; the ranks that are gone stay so."""
    workdir = base.with_name("ranks")
    config = adapted(values, base, adapter="adalora(rank=3, target=1, on='all', steps_before=1, steps_after=1)")
    assert train(config, workdir) == 0
    disturbed = shutil.copytree(workdir, workdir.with_name("ranks_disturbed"))
    shutil.rmtree(disturbed / "checkpoints" / "4")
    assert train(config, disturbed) == 0 and runs.losses(disturbed) == runs.losses(workdir)
    saved = [runs.saved_arrays(each, STEPS, ("params", "importance")) for each in (workdir, disturbed)]
    assert any("sensitivity" in name for name in saved[0])
    assert all(np.array_equal(array, saved[1][name]) for name, array in saved[0].items())
    kept = [array for name, array in names(run.load(workdir).params).items() if name.endswith("/E")]
    assert sum((array != 0).sum() for array in kept) == sum(len(array) for array in kept)
    late = adapted(values, base, adapter="adalora(steps_before=4)")
    assert train(late, workdir.with_name("late")) == 2
    assert "leaves no step to give up ranks in: the run has 4 steps" in capsys.readouterr().err


def test_a_base_that_is_gone_or_another_or_damaged_is_refused_by_name_and_hash(adapter, values, base, capsys):
    digest = json.loads((base / "checkpoints" / "6" / "manifest.json").read_text())["sha256"][:12]
    said = f"the frozen parameters of this run lie in step 6 of {base} (checkpoint {digest})"
    folder, aside = base / "checkpoints" / "6", base / "aside"
    folder.rename(aside)
    with pytest.raises(UserError, match="it is not there; put that checkpoint back there") as error:
        run.load(adapter)
    assert str(error.value).startswith(said)
    assert train(adapted(values, base), adapter) == 2 and said in capsys.readouterr().err
    assert cli.main(["verify", str(adapter)]) != 0 and "it is not there" in capsys.readouterr().out
    shutil.copytree(base / "checkpoints" / "4", folder)
    with pytest.raises(UserError, match="another checkpoint is there now"):
        run.load(adapter)
    shutil.rmtree(folder)
    shutil.copytree(aside, folder)
    damage.flip(damage.data_file(folder))
    with pytest.raises(UserError, match="it is damaged"):
        run.load(adapter)
    shutil.rmtree(folder)
    aside.rename(folder)
    run.load(adapter)
    assert cli.main(["verify", str(adapter)]) == 0


@pytest.mark.slow
def test_an_adapter_run_is_the_base_of_another(adapter, values, base):
    """Its second stage trains the same adapter further."""
    second = adapter.with_name("second")
    assert train(adapted(values, adapter), second) == 0
    before, after = names(run.load(adapter, STEPS).params), names(run.load(second, 0).params)
    assert before.keys() == after.keys() and all(np.array_equal(array, after[name]) for name, array in before.items())
    assert run_directory.open_run(second).manifest()["started_from"]["initialised"] == []
    assert all("adapter" in name or "count" in name for name in runs.saved_arrays(second, STEPS))


def test_a_plain_model_does_not_start_from_an_adapter(adapter, values, capsys):
    assert train(adapted(values, adapter, adapter=None), adapter.with_name("plain")) == 2
    assert "merge its adapter first (gptjax adapter merge)" in capsys.readouterr().err


TEXT = "abcabcab cab a b"


@pytest.mark.slow
def test_a_merged_run_computes_the_same_and_can_be_trained_from(adapter, values, base, capsys):
    out = adapter.with_name("merged")
    assert cli.main(["adapter", "merge", f"--workdir={adapter}", f"--out={out}"]) == 0
    plain, adapted_run = run.load(out), run.load(adapter)
    logits, expected = plain.logits(TEXT), adapted_run.logits(TEXT)
    assert plain.config.model.adapter is None and plain.params.keys() == run.load(base).params.keys()
    assert abs(logits - expected).max() <= 1e-6 < abs(expected - run.load(base).logits(TEXT)).max()
    assert cli.main(["adapter", "merge", f"--workdir={base}", f"--out={out}2"]) == 2
    assert "this model has no adapter to merge" in capsys.readouterr().err
    assert train(adapted(values, out, adapter=None), adapter.with_name("further")) == 0


def test_several_adapters_share_one_base(adapter, values, base):
    other = adapter.with_name("other")
    assert train(adapted(values, base, adapter="lora(on='qkv')"), other) == 0
    shared = run.load(base)
    for path in (adapter, other):
        both = shared.with_adapter(path)
        assert both.params["token_embedding"] is shared.params["token_embedding"]
        assert np.array_equal(both.logits(TEXT), run.load(path).logits(TEXT))
    with pytest.raises(UserError, match="was trained on step 6 of .* and not on step 4"):
        run.load(base, 4).with_adapter(adapter)


@pytest.mark.slow
def test_a_frozen_base_in_nf4_is_made_of_the_run_it_starts_from_and_goes_on_bit_equal(values, base, capsys):
    workdir = base.with_name("nf4")
    config = adapted(values, base, adapter="lora(on='all', rank=2, frozen='nf4')")
    assert train(config, workdir) == 0
    assert all("adapter" in name or "count" in name for name in runs.saved_arrays(workdir, STEPS))
    start, plain = run.load(workdir, 0), run.load(base)
    up = names(start.params)["blocks/mlp/up/weight"], names(start.params)["blocks/mlp/up/scale"]
    expected = nf4.quantised(names(plain.params)["blocks/mlp/up/weight"], -1)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(up, expected, strict=True))
    trained_run = run.load(workdir)
    assert np.array_equal(run.load(base).with_adapter(workdir).logits(TEXT), trained_run.logits(TEXT))
    assert not np.array_equal(trained_run.logits(TEXT), start.logits(TEXT))
    assert abs(trained_run.merged().logits(TEXT) - trained_run.logits(TEXT)).max() <= 1e-5
    disturbed = shutil.copytree(workdir, workdir.with_name("nf4_disturbed"))
    shutil.rmtree(disturbed / "checkpoints" / "4")
    assert train(config, disturbed) == 0 and runs.losses(disturbed) == runs.losses(workdir)
    assert train(runs.changed(config, train=dict(trainable="*weight")), workdir.with_name("nf4_refused")) == 2
    assert "which is kept in uint8 and frozen" in capsys.readouterr().err


@pytest.mark.slow
def test_a_frozen_base_in_bytes_is_made_of_the_run_it_starts_from(adapter, values, base, capsys):
    """QLoRA: the base is a quarter of its size in memory, and no byte of it is in the checkpoints."""
    workdir = adapter.with_name("bytes")
    config = adapted(values, base, adapter="lora(on='all', rank=2, frozen='int8')")
    assert train(config, workdir) == 0
    assert "newly initialised: blocks/attention/out/adapter/whole/A" in capsys.readouterr().err
    assert all("adapter" in name or "count" in name for name in runs.saved_arrays(workdir, STEPS))
    expected = run.load(base, dtype="int8")
    loaded = run.load(workdir, 0)
    for name, array in names(expected.params).items():
        if name.startswith("blocks/"):
            assert np.array_equal(array, names(loaded.params)[name]), name
    assert names(loaded.params)["blocks/mlp/up/weight"].dtype == np.int8
    assert np.array_equal(loaded.logits(TEXT), expected.logits(TEXT))
    trained_run = run.load(workdir)
    assert np.array_equal(run.load(workdir, dtype="int8").logits(TEXT), trained_run.logits(TEXT))
    assert np.array_equal(run.load(base).with_adapter(workdir).logits(TEXT), trained_run.logits(TEXT))
    with pytest.raises(UserError, match="onto parameters in floats"):
        expected.with_adapter(adapter)
    assert not np.array_equal(trained_run.logits(TEXT), loaded.logits(TEXT))
    assert abs(trained_run.merged().logits(TEXT) - trained_run.logits(TEXT)).max() <= 1e-5
    disturbed = shutil.copytree(workdir, workdir.with_name("bytes_disturbed"))
    shutil.rmtree(disturbed / "checkpoints" / "4")
    assert train(config, disturbed) == 0 and runs.losses(disturbed) == runs.losses(workdir)
    assert train(runs.changed(config, train=dict(trainable="*weight")), workdir.with_name("refused")) == 2
    assert "which is kept in int8 and frozen" in capsys.readouterr().err
