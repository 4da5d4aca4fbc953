"""The README's recipe for an experiment on the model: a copy of gpt.py, named in one table, is a model like any other."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import judging
import numpy as np
import pytest
import runs
from flax import nnx

import gptjax
from gptjax import cli, flops
from gptjax.config import catalogue
from gptjax.config.config_file import from_dict
from gptjax.config.fields import Config, ModelConfig, OptimConfig, TrainConfig
from gptjax.diagnostics import miniature
from gptjax.errors import UserError, imported
from gptjax.huggingface import families
from gptjax.models import architectures, attention, gpt_counts, layers
from gptjax.models import gpt as model
from gptjax.optim import optimizers
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
def folder(tmp_path_factory):
    """Of a file that was copied from gpt.py: attention and MLP read the same residual stream."""
    source = pathlib.Path(model.__file__).read_text()
    assert source.count(ONE_AFTER_THE_OTHER) == source.count(START) == 1
    file = tmp_path_factory.mktemp("copy") / "parallel_model.py"
    file.write_text(
        source.replace(ONE_AFTER_THE_OTHER, SIDE_BY_SIDE).replace(START, START + "            before_BLD = x_BLD\n")
    )
    return file.parent


@pytest.fixture
def named(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    entry = catalogue.Architecture("parallel_model:GPT", "gptjax.models.gpt_counts")
    monkeypatch.setitem(catalogue.ARCHITECTURES, NAME, entry)


@pytest.fixture
def of_copy(values):
    return runs.changed(judging.trained_values(values), model={"architecture": NAME})


@pytest.mark.slow
def test_a_copied_model_trains_evaluates_and_goes_on_with_a_text_as_its_own(named, of_copy, trained, tmp_path, capsys):
    assert main.train(from_dict(of_copy), str(tmp_path / "run")) == 0
    ours, theirs = runs.losses(tmp_path / "run"), runs.losses(trained)
    assert ours[0][3] == theirs[0][3] and ours[0][1] != theirs[0][1], "the same text, another model"
    run = gptjax.load(tmp_path / "run")
    assert type(run.model).__module__ == "parallel_model"
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
def test_a_copied_model_has_each_kernel(named, of_copy, platform, fields, kernel):
    config = from_dict(runs.changed(of_copy, model={**fields, "vocab_size": 9}))
    chosen, _ = attention.choose_kernel(config, platform, 1)
    assert chosen == kernel
    assert architectures.make(config.model, jax.random.key(0), chosen).kernel == kernel


def test_a_copied_model_lies_on_meshes_and_has_a_miniature_as_a_gpt(named, of_copy):
    config = from_dict(runs.changed(of_copy, model={"vocab_size": 9, "n_layers": 2}))
    meshes.check_fit(config, dict.fromkeys(meshes.AXES, 1) | {"stage": 2, "sequence": 2})
    small = miniature.shrink(config, steps=1)
    assert (small.model.architecture, small.model.n_heads) == (NAME, 4)


def test_a_copied_model_is_not_exported_as_what_it_is_not(named, of_copy):
    with pytest.raises(UserError, match="model.architecture='parallel' cannot be written"):
        families.family_for(from_dict(of_copy).model)


@pytest.mark.parametrize(
    "fields, said",
    [
        (
            {"model": "paralel_model:GPT"},
            "is paralel_model:GPT, but Python finds no module paralel_model; put its folder",
        ),
        (
            {"model": "gptjax.models.gpt:GPTT"},
            "is gptjax.models.gpt:GPTT, but gptjax.models.gpt has no GPTT; did you mean 'GPT'",
        ),
        ({"counts": "my.counts"}, "is my.counts, but Python finds no module my"),
    ],
)
def test_an_entry_that_names_nothing_is_one_line(named, monkeypatch, fields, said):
    monkeypatch.setitem(catalogue.ARCHITECTURES, NAME, dataclasses.replace(catalogue.entry(NAME), **fields))
    config = ModelConfig(architecture=NAME, vocab_size=9)
    with pytest.raises(UserError, match=f"model.architecture='parallel' {said}"):
        flops.parameters(config), architectures.abstract(config)


def test_a_module_that_misses_another_says_which(monkeypatch, tmp_path):
    (tmp_path / "needy_model.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        imported("needy_model:GPT", "model.architecture='needy'")


def test_a_model_is_imported_when_it_is_chosen():
    code = """
import sys
from gptjax.models import architectures, attention; from gptjax.training import step
from gptjax.config.fields import ModelConfig
chosen = ModelConfig(vocab_size=9, n_layers=1, d_model=8, n_heads=1)
architectures.roles(chosen), architectures.abstract(chosen)
print(*(f"gptjax.models.{name}" in sys.modules for name in ("gpt", "lstm", "splash", "context_attention")))
architectures.abstract(chosen.with_architecture("lstm", vocab_size=9))
print("gptjax.models.lstm" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["True", "False", "False", "False", "True"], result.stderr


def test_a_parameter_that_does_not_say_what_it_is_is_named(named):
    """Of a model whose author left it out: no optimizer is made for it, by whatever name it goes."""
    module = catalogue.model_class(NAME)

    class Forgetful(module):
        def __init__(self, *args):
            super().__init__(*args)
            self.gate = nnx.Param(jnp.zeros(4), axes=("embed",))

    catalogue.ARCHITECTURES[NAME] = dataclasses.replace(catalogue.entry(NAME), model="parallel_model:Forgetful")
    sys.modules[module.__module__].Forgetful = Forgetful
    config = ModelConfig(architecture=NAME, vocab_size=9, n_layers=1, d_model=8, n_heads=1)
    with pytest.raises(ValueError, match="parameter gate states kind=None; give .* one of: matrix, embedding, vector"):
        optimizers.make_optimizer(OptimConfig(), config)


def entries(config: ModelConfig) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(architectures.abstract(config)[1]))


def test_counts_that_are_not_those_of_the_model_are_refused(monkeypatch):
    """As of a copied model with another matrix, which is still counted as the old one."""
    config = ModelConfig(vocab_size=200, context_length=16, n_layers=2, d_model=32, n_heads=4)
    for same in (config, ModelConfig(**{**vars(config), "tied_head": False})):
        flops.check_counts(same, entries(same))
    monkeypatch.setitem(layers.ACTIVATIONS, "geglu", lambda x: jax.nn.gelu(x[..., 0, :]) * x[..., 1, :])
    monkeypatch.setattr(gpt_counts, "GATED", (*gpt_counts.GATED, "geglu"))
    gated = dataclasses.replace(config, mlp="geglu")
    flops.check_counts(gated, entries(gated))
    said = "has .* parameters, but gptjax.models.gpt_counts counts .*; name counts of its own"
    with pytest.raises(UserError, match=said):
        flops.check_counts(config, entries(config) + 2 * 32 * 32)
    monkeypatch.setattr(gpt_counts, "_norm_parameters", lambda model: 0)
    with pytest.raises(UserError, match=said):
        info.info(Config(model=config, train=TrainConfig(steps=1, batch_size=8)))
