"""An optimizer, a model and an attention kernel, each added from outside by one function or class and one entry of a table."""

import json
import pathlib
import re

import jax
import judging
import numpy as np
import optax
import pytest
import runs

import gptjax
from gptjax import cli, schedule
from gptjax.config import catalogue
from gptjax.config.fields import ModelConfig, OptimConfig
from gptjax.models import attention, gpt, layers, parametrization
from gptjax.optim import optimizers


@pytest.fixture
def train(values, tmp_path, capsys):
    """train(name, section=fields, ...) runs `gptjax train` on conftest's tiny run with these; the folder, or the error."""

    def command(name: str, **sections):
        given = runs.changed(judging.trained_values(values), eval=dict(every_steps=None), optim=dict(ema_decay=None))
        config = runs.write_config(runs.changed(given, **sections), tmp_path / f"{name}.py")
        code = cli.main(["train", config, f"--workdir={tmp_path / name}"])
        said = capsys.readouterr().err
        return tmp_path / name if code == 0 else (code, said)

    return command


# An optimizer


def test_an_optimizer_is_a_direction_and_an_entry_with_decay_and_mup(train, monkeypatch):
    """Signs of gradients: what Lion is without its averages, bit for bit, also where muP changes learning rates."""

    def signs(config, roles):
        return (optax.scale_by_sign(),)

    monkeypatch.setitem(optimizers.OPTIMIZERS, "signs", optimizers.Optimizer(signs, parametrization.ENTRYWISE))
    mup = dict(parametrization="mup", base_width=8)
    losses = {}
    for name, fields in (("signs", {}), ("lion", dict(beta1=0.0, beta2=0.0))):
        folder = train(name, model=mup, optim=dict(name=name, peak_lr=1e-3, weight_decay=0.5, **fields))
        losses[name] = runs.losses(folder)
    assert losses["signs"] == losses["lion"] and losses["signs"][-1][1] < losses["signs"][0][1]
    assert gptjax.load(folder.parent / "signs").config.optim.name == "signs"


def test_an_optimizer_with_a_learning_rate_of_its_own_is_refused_before_it_trains(train, monkeypatch):
    entry = optimizers.Optimizer(lambda config, roles: (optax.adamw(1e-3),), parametrization.ENTRYWISE)
    monkeypatch.setitem(optimizers.OPTIMIZERS, "adamw_of_optax", entry)
    code, said = train("refused", optim=dict(name="adamw_of_optax"))
    assert code == 2 and "optim.name='adamw_of_optax' makes updates that point against the gradient" in said


# A model

BESIDE = {  # attention and MLP side by side, after one norm: Wang and Komatsuzaki 2021 (GPT-J)
    "        self.mlp_norm = norm(config.d_model, config)\n": "",
    "self.attention(self.attention_norm(x_BLD), attend": "self.attention(normed_BLD := self.attention_norm(x_BLD), attend",
    "self.mlp(self.mlp_norm(x_BLD)), rate, key_mlp)\n            x": "self.mlp(normed_BLD), rate, key_mlp)\n            x",
}
COUNTS = """
from gptjax.models.gpt_counts import *
from gptjax.models import gpt_counts

def layer_parameters(model, relative_positions=False):
    matrices, vectors = gpt_counts.layer_parameters(model, relative_positions)
    return matrices, vectors - 2 * model.d_model
"""


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A copied and changed GPT in a file that stands alone, with its counts, and its entry."""
    source = pathlib.Path(gpt.__file__).read_text()
    for old, new in BESIDE.items():
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    (tmp_path / "beside_model.py").write_text(source)
    (tmp_path / "beside_counts.py").write_text(COUNTS)
    monkeypatch.syspath_prepend(tmp_path)
    entry = catalogue.Architecture("beside_model:GPT", "beside_counts")
    monkeypatch.setitem(catalogue.ARCHITECTURES, "beside", entry)


def test_a_model_is_a_changed_copy_with_its_counts_and_an_entry(train, beside, trained, capsys):
    folder = train("beside", model=dict(architecture="beside"), optim=dict(name="muon"))
    run = gptjax.load(folder)
    assert type(run.model).__module__ == "beside_model" and "mlp_norm" not in run.params["blocks"]
    assert (
        runs.losses(folder)[0][1] != runs.losses(trained)[0][1]
        and runs.losses(folder)[0][3] == runs.losses(trained)[0][3]
    )
    assert run.generate("ab", max_tokens=3)[0].tokens.size == 3
    logits = run.logits("abcab")
    np.testing.assert_allclose(run.logit_lens("abcab")[-1], logits, atol=1e-5)
    config = f"--config={folder.with_suffix('.py')}"
    vocab_size = run.config.model.vocab_size
    assert cli.main(["info", config, "--json", f"--config.model.vocab_size={vocab_size}"]) == 0
    padding = (run.config.model.padded_vocab_size - vocab_size) * run.config.model.d_model
    entries = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    assert json.loads(capsys.readouterr().out)["params"]["total"] == entries - padding


# An attention kernel

KERNEL = """
import jax, jax.numpy as jnp

def whole_attention(q, k, v, *, window=None, segment_BL=None, prefix_BL=None, dropout_rate=0.0, key=None):
    assert segment_BL is None and prefix_BL is None and window is None
    logits = jnp.einsum("blhk,bmhk->bhlm", q, k) * q.shape[-1] ** -0.5
    logits = jnp.where(jnp.tri(q.shape[1], dtype=bool), logits, -1e30)
    return jnp.einsum("bhlm,bmhk->blhk", jax.nn.softmax(logits), v)
"""


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    (tmp_path / "whole_kernel.py").write_text(KERNEL)
    monkeypatch.syspath_prepend(tmp_path)
    entry = attention.Kernel("whole_kernel:whole_attention", ("cpu",), float32=True, largest_head=64)
    monkeypatch.setitem(attention.KERNELS, "whole", entry)


def test_an_attention_kernel_is_a_function_and_an_entry(train, kernel, trained, capsys):
    folder = train("whole", model=dict(attention="whole"))
    ours, xla = runs.losses(folder), runs.losses(trained)
    np.testing.assert_allclose([row[1] for row in ours], [row[1] for row in xla], rtol=1e-5)
    assert ours != xla, "another kernel, other roundings"


@pytest.mark.parametrize(
    "sections, said",
    [
        (dict(data=dict(mask_documents=True, separator=" ")), "it cannot keep packed documents apart"),
        (dict(model=dict(attention="whole", head_dim=72)), "it needs a head size of at most 64 (it is 72)"),
        (dict(model=dict(attention="whole", dtype="bfloat16"), mesh=dict(sequence=2)), "it cannot split a sequence"),
    ],
)
def test_a_kernel_is_refused_where_its_entry_says_that_it_cannot(train, kernel, sections, said):
    code, error = train("refused", **runs.changed({"model": dict(attention="whole")}, **sections))
    assert code == 2 and f"model.attention='whole' cannot be used: {said}" in error


# What the config says

CHOICES = {
    ("model", "architecture"): catalogue.ARCHITECTURES,
    ("model", "attention"): ("auto", *attention.KERNELS),
    ("model", "norm"): layers.NORMS,
    ("model", "mlp"): layers.ACTIVATIONS,
    ("model", "parametrization"): parametrization.NAMES,
    ("model", "dtype"): layers.DTYPES,
    ("model", "remat"): catalogue.entry("gpt").remat,
    ("optim", "name"): optimizers.OPTIMIZERS,
    ("optim", "schedule"): schedule.SCHEDULES,
}


@pytest.mark.parametrize("section, field", CHOICES)
def test_the_names_beside_a_config_field_are_those_of_its_table(section, field):
    fields = {"model": ModelConfig, "optim": OptimConfig}[section].__dataclass_fields__
    listed = re.search(r"\w+( \| \w+)+", re.sub(r" \([^)]*\)", "", fields[field].metadata["meaning"])).group()
    assert sorted(listed.split(" | ")) == sorted(CHOICES[section, field])
