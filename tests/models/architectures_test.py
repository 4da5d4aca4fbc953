"""The README's recipe for an experiment on the model: a copy of gpt.py, named in two tables, is a model like any other."""

import importlib.util
import json
import pathlib

import jax
import judging
import numpy as np
import pytest
import runs

import gptjax
from gptjax import cli, flops
from gptjax.config.config_file import from_dict
from gptjax.config.fields import Config, ModelConfig, TrainConfig
from gptjax.diagnostics import miniature
from gptjax.errors import UserError
from gptjax.huggingface import families
from gptjax.models import architectures, attention, gpt_counts
from gptjax.models import gpt as model
from gptjax.parallel import meshes
from gptjax.planning import info
from gptjax.training import main

NAME = "parallel"
ONE_AFTER_THE_OTHER = (
    "self.mlp(self.mlp_norm(x_BLD)), rate, key_mlp)\n            x_BLD = x_BLD + parametrization.scaled(hidden"
)
SIDE_BY_SIDE = (
    "self.mlp(self.mlp_norm(before_BLD)), rate, key_mlp)\n            x_BLD = x_BLD + parametrization.scaled(hidden"
)
START = "            part = parametrization.branch_multiplier(self.config)\n"


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The class of a file that was copied from gpt.py: attention and MLP read the same residual stream."""
    source = pathlib.Path(model.__file__).read_text()
    assert source.count(ONE_AFTER_THE_OTHER) == source.count(START) == 1
    file = tmp_path_factory.mktemp("copy") / "parallel_model.py"
    file.write_text(
        source.replace(ONE_AFTER_THE_OTHER, SIDE_BY_SIDE).replace(START, START + "            before_BLD = x_BLD\n")
    )
    spec = importlib.util.spec_from_file_location("parallel_model", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GPT


@pytest.fixture
def named(copied, monkeypatch):
    monkeypatch.setitem(architectures.ARCHITECTURES, NAME, copied)
    monkeypatch.setitem(flops.COUNTS, NAME, gpt_counts)


@pytest.fixture
def of_copy(values):
    return runs.changed(judging.trained_values(values), model={"architecture": NAME})


def test_a_copied_model_trains_evaluates_and_goes_on_with_a_text_as_its_own(named, of_copy, trained, tmp_path, capsys):
    assert main.train(from_dict(of_copy), str(tmp_path / "run")) == 0
    ours, theirs = runs.losses(tmp_path / "run"), runs.losses(trained)
    assert ours[0][3] == theirs[0][3] and ours[0][1] != theirs[0][1], "the same text, another model"
    run = gptjax.load(tmp_path / "run")
    assert type(run.model) is architectures.ARCHITECTURES[NAME]
    assert run.generate("ab", max_tokens=3)[0].tokens.size == 3
    assert run.generate("ab", max_tokens=3, num_beams=2)[0].tokens.size == 3
    assert run.attention("abc").weight_NHLM.shape == (1, 4, 3, 3)
    np.testing.assert_allclose(run.logit_lens("abc")[-1], run.logits("abc"), atol=1e-5)
    assert cli.main(["eval", f"--workdir={tmp_path / 'run'}", "--max_tokens=128"]) == 0


def test_a_copied_model_is_counted_and_planned(named, of_copy, tmp_path, capsys):
    whole = runs.changed(of_copy, model={"vocab_size": 9})
    config = runs.write_config(whole, tmp_path / "fields.py")
    assert cli.main(["info", config, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    same = dict(whole["model"])
    same.pop("architecture")
    assert flops.parameter_counts(ModelConfig(**same)).items() <= facts["params"].items()
    assert cli.main(["plan", config, "--topology=h100:1x8"]) == 0


@pytest.mark.parametrize(
    "platform, fields, kernel",
    [
        ("cpu", {}, "xla"),
        ("tpu", {"context_length": 128}, "splash"),
        ("gpu", {"dtype": "bfloat16", "n_heads": 2}, "cudnn"),
    ],
)
def test_a_copied_model_has_each_kernel(named, copied, of_copy, platform, fields, kernel):
    config = from_dict(runs.changed(of_copy, model={**fields, "vocab_size": 9}))
    chosen, _ = attention.choose_kernel(config, platform, 1)
    assert chosen == kernel
    assert copied(config.model, jax.random.key(0), chosen).kernel == kernel


def test_a_copied_model_lies_on_meshes_and_has_a_miniature_as_a_gpt(named, of_copy):
    config = from_dict(runs.changed(of_copy, model={"vocab_size": 9, "n_layers": 2}))
    meshes.check_fit(config, dict.fromkeys(meshes.AXES, 1) | {"stage": 2, "sequence": 2})
    small = miniature.shrink(config, steps=1)
    assert (small.model.architecture, small.model.n_heads) == (NAME, 4)


def test_a_copied_model_is_not_exported_as_what_it_is_not(named, of_copy):
    with pytest.raises(UserError, match="model.architecture='parallel' cannot be written"):
        families.family_for(from_dict(of_copy).model)


def test_a_model_without_counts_is_told_where_to_name_them(copied, monkeypatch):
    monkeypatch.setitem(architectures.ARCHITECTURES, NAME, copied)
    with pytest.raises(UserError, match="model.architecture='parallel' is not known.* its counts in flops.COUNTS"):
        Config(model=ModelConfig(architecture=NAME, vocab_size=9), train=TrainConfig(steps=1))


def test_counts_that_are_not_those_of_the_model_are_refused(monkeypatch):
    """As of a copied model with another matrix, which is still counted as the old one."""
    config = ModelConfig(vocab_size=200, context_length=16, n_layers=2, d_model=32, n_heads=4)
    for same in (config, ModelConfig(**{**vars(config), "tied_head": False})):
        architectures.check_counts(same, architectures.abstract(same)[1])
    _, params, _ = architectures.abstract(config)
    params["blocks"]["gate"] = {"weight": jax.ShapeDtypeStruct((2, 32, 32), np.float32)}
    said = "has .* parameters, but gptjax.models.gpt_counts counts .*; name counts of its own"
    with pytest.raises(UserError, match=said):
        architectures.check_counts(config, params)
    monkeypatch.setattr(gpt_counts, "_norm_parameters", lambda model: 0)
    with pytest.raises(UserError, match=said):
        info.info(Config(model=config, train=TrainConfig(steps=1, batch_size=8)))
