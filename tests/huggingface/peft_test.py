"""Adapters of PEFT: read, computed and written as PEFT does. Golden files made by tests/golden/make_peft.py."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from places import ROOT
from safetensors.numpy import load_file, save_file

from gptjax import cli
from gptjax.config import catalogue
from gptjax.config.fields import MeshConfig
from gptjax.errors import UserError
from gptjax.huggingface import importing, peft
from gptjax.models import architectures, loss, placed
from gptjax.models.adapters import merging
from gptjax.run import run

GOLDEN = ROOT / "tests" / "golden" / "peft"
ADAPTERS = sorted(f"{file.parent.parent.name}/{file.parent.name}" for file in GOLDEN.glob("*/*/expected.npz"))


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """imported(name) is the run directory of a model of the golden files, or of an adapter, imported once."""
    folder, made = tmp_path_factory.mktemp("imported"), {}

    def get(name):
        if name not in made:
            workdir = folder / name.replace("/", "-")
            if "/" in name:
                peft.import_adapter(str(GOLDEN / name), str(get(name.partition("/")[0])), str(workdir))
            else:
                importing.import_folder(str(GOLDEN / name), str(workdir), tokenizer="ids")
            made[name] = workdir
        return made[name]

    return get


def relative(ours, theirs) -> float:
    return float(abs(np.asarray(ours) - theirs).max() / abs(theirs).max())


def loss_of(params, graph, token_BL):
    model = nnx.merge(graph, params)
    x_BLD, _ = model.activations(token_BL[:, :-1])
    token_loss, _ = loss.cross_entropy(x_BLD, model.head_VD, token_BL[:, 1:], vocab_size=model.config.vocab_size)
    return token_loss.mean()


@pytest.mark.parametrize("name", ADAPTERS)
def test_outputs_gradients_and_merged_models_are_peft_s(imported, name):
    loaded, expected = run.load(imported(name)), np.load(GOLDEN / name / "expected.npz")
    token_BL = jnp.asarray(expected["token_BL"], jnp.int32)
    assert relative(loaded.logits(expected["token_BL"]), expected["logits"]) <= 1e-5
    base = run.load(imported(name.partition("/")[0]))
    assert relative(base.logits(expected["token_BL"]), expected["logits"]) > 0.02
    value, grads = jax.value_and_grad(loss_of)(loaded.params, loaded.graph, token_BL)
    assert abs(float(value) - float(expected["loss"])) <= 1e-5
    model = loaded.config.model
    kind = catalogue.adapter(model.adapter)
    grads = jax.tree.map(np.asarray, grads)
    blocks = grads["blocks"]
    for path in ("attention", "mlp"):
        for linear in blocks[path].values():
            linear["weight"] = np.zeros_like(linear["weight"])  # of which a length is taken
    ours = peft.tensors_out(kind, merging.without_adapter(model), grads | {"blocks": blocks})
    theirs = {key.removeprefix("grad/"): expected[key] for key in expected.files if key.startswith("grad/")}
    assert ours.keys() == theirs.keys()
    for key, grad in theirs.items():
        assert relative(ours[key], grad) <= 1e-5, key
    if "merged" not in expected.files:
        with pytest.raises(UserError, match="can't be merged"):
            loaded.merged()
        return
    merged = loaded.merged()
    assert relative(merged.logits(expected["token_BL"]), expected["merged"]) <= 1e-5
    assert relative(merged.logits(expected["token_BL"]), np.asarray(loaded.logits(expected["token_BL"]))) <= 3e-6


@pytest.mark.parametrize("name", [name for name in ADAPTERS if not name.endswith(("prefix", "prompt"))])
def test_unmerging_gives_the_base_again(imported, name):
    loaded = run.load(imported(name))
    merged, kept = merging.merge(loaded.config.model, loaded.params)
    restored = merging.unmerge(loaded.config.model, merged, loaded.params, kept)
    paths = dict(jax.tree_util.tree_leaves_with_path(restored))
    for path, leaf in jax.tree_util.tree_leaves_with_path(loaded.params):
        assert np.allclose(paths[path], leaf, rtol=1e-6, atol=1e-7), path


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_leaves_as_it_came(imported, name, tmp_path):
    assert cli.main(["export", str(imported(name)), "--to=peft", f"--out={tmp_path / 'out'}"]) == 0
    theirs, ours = (load_file(folder / peft.WEIGHTS) for folder in (GOLDEN / name, tmp_path / "out"))
    assert theirs.keys() == ours.keys()
    for key, array in theirs.items():  # a DoRA length is a sum with that of the weight
        equal = np.allclose(ours[key], array, rtol=1e-6) if "magnitude" in key else np.array_equal(ours[key], array)
        assert equal and ours[key].shape == array.shape, key
    before, after = (json.loads((folder / peft.CONFIG).read_text()) for folder in (GOLDEN / name, tmp_path / "out"))
    for field in ("r", "lora_alpha", "use_dora", "use_rslora", "fan_in_fan_out"):
        assert after.get(field) == before.get(field), field


def test_a_gguf_file_has_the_merged_model(imported, tmp_path):
    adapted, file = run.load(imported("llama/lora")), tmp_path / "merged.gguf"
    assert cli.main(["export", str(adapted.directory.path), "--to=gguf", f"--out={file}"]) == 0
    assert cli.main(["import", str(file), f"--workdir={tmp_path / 'run'}", "--tokenizer=ids"]) == 0
    token_BL = np.load(GOLDEN / "llama/lora/expected.npz")["token_BL"]
    assert relative(run.load(tmp_path / "run").logits(token_BL), np.asarray(adapted.logits(token_BL))) <= 3e-6


@pytest.fixture
def folder(tmp_path):
    """A copy of the golden LoRA of GPT-2, to be changed."""
    return shutil.copytree(GOLDEN / "gpt2/lora", tmp_path / "adapter")


def test_what_is_no_adapter_of_this_model_is_refused_by_name(imported, folder, tmp_path, capsys):
    def said_of(base="gpt2", **fields):
        values = json.loads((GOLDEN / "gpt2/lora" / peft.CONFIG).read_text())
        (folder / peft.CONFIG).write_text(json.dumps(values | fields))
        command = ["import", str(folder), "--from=peft", f"--base={imported(base)}", f"--workdir={tmp_path / 'run'}"]
        assert cli.main(command) == 2 and not (tmp_path / "run").exists()
        return capsys.readouterr().err

    assert "peft_type='OFT'; gptjax imports LORA" in said_of(peft_type="OFT")
    assert "modules_to_save=['lm_head'], for which gptjax has no equal" in said_of(modules_to_save=["lm_head"])
    assert "bias='all'" in said_of(bias="all")
    assert "updates of several scales" in said_of(alpha_pattern={"c_attn": 3, "c_fc": 4})
    assert "h.0.attn.c_attn.lora_A.weight, which is no part of this model, whose linear maps are" in said_of("llama")
    assert "has an adapter already" in said_of("gpt2/lora")
    tensors = load_file(GOLDEN / "gpt2/lora" / peft.WEIGHTS)
    name = "base_model.model.transformer.h.1.mlp.c_fc.lora_B.weight"
    save_file({key: array for key, array in tensors.items() if key != name}, folder / peft.WEIGHTS)
    assert f"has no {name}." in said_of()
    save_file(tensors | {name: tensors[name][:-1]}, folder / peft.WEIGHTS)
    assert "lora_B.weight is [63, 2], and in this model [64, 2]." in said_of()
    (folder / peft.WEIGHTS).write_bytes(b"damaged")
    assert "cannot be read" in said_of()


OURS = {
    "gpt2": [
        "lora(on='q,v', rank=2)",
        "rslora(on='q,v,o', rank=3)",
        "dora(on='k,down', rank=2)",
        "ia3(on='k,v,down')",
        "adalora(on='v,up', rank=3, target=2)",
    ],
    "llama": [
        "lora(on='qkv', rank=2)",
        "dora(on='all', rank=2)",
        "ia3(on='q,gate,down')",
        "adalora(on='qkv,down')",
        "rslora(on='qkv,up')",
    ],
}


@pytest.mark.parametrize("base, adapter", [(base, adapter) for base, adapters in OURS.items() for adapter in adapters])
def test_what_peft_reads_computes_the_same(imported, base, adapter, tmp_path):
    """Also of pieces of a matrix that is one in transformers, and of one adapter for matrices that are three there."""
    theirs = pytest.importorskip("peft")
    import torch
    import transformers

    loaded = run.load(imported(base))
    config = loaded.config.replace(model={"adapter": adapter})
    program = placed.of_run(config, MeshConfig(), jax.local_devices()[:1])
    rng = np.random.default_rng(0)
    start = architectures.split(architectures.make(config.model, jax.random.key(0)))[1]
    drawn = jax.tree.map(lambda leaf: leaf + 0.2 * rng.standard_normal(leaf.shape).astype(np.float32), start)
    params = flatten_dict(drawn) | flatten_dict(loaded.params)
    adapted = dataclasses.replace(loaded, config=config, program=program, params=unflatten_dict(params))
    peft.export_adapter(adapted, str(tmp_path / "out"))
    model = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / base)
    model = theirs.PeftModel.from_pretrained(model, tmp_path / "out").eval()
    token_BL = np.random.default_rng(1).integers(0, 65, (2, 12))
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(token_BL)).logits.numpy()
    assert relative(adapted.logits(token_BL), expected) <= 1e-5 < relative(loaded.logits(token_BL), expected)


def adapted_run(base, adapter: str):
    """A Run of a base with an adapter of drawn parameters."""
    loaded = run.load(base)
    config = loaded.config.replace(model={"adapter": adapter})
    program = placed.of_run(config, MeshConfig(), jax.local_devices()[:1])
    rng = np.random.default_rng(0)
    start = architectures.split(architectures.make(config.model, jax.random.key(0)))[1]
    drawn = jax.tree.map(lambda leaf: leaf + 0.2 * rng.standard_normal(leaf.shape).astype(np.float32), start)
    params = unflatten_dict(flatten_dict(drawn) | flatten_dict(loaded.params))
    return dataclasses.replace(loaded, config=config, program=program, params=params)


@pytest.mark.parametrize(
    "adapter", ["lora(on='all', rank=2)", "rslora(on='q,v,o', rank=3)", "dora(on='k,v,down', rank=2)"]
)
def test_an_adapter_of_parts_of_one_matrix_comes_back_as_it_was(imported, adapter, tmp_path):
    """GPT-2's c_attn has the ranks of all its parts together in PEFT's files, and the other matrices one of them."""
    base = imported("gpt2")
    adapted = adapted_run(base, adapter)
    peft.export_adapter(adapted, str(tmp_path / "out"))
    peft.import_adapter(str(tmp_path / "out"), str(base), str(tmp_path / "back"))
    back = run.load(tmp_path / "back")
    parts = [part.strip("'") for part in adapter.partition("on=")[2].partition(", rank")[0].split(",")]
    assert back.config.model.adapter.partition("on=")[2].startswith(
        repr(",".join(parts if parts != ["all"] else "q k v o up down".split()))
    )
    ours = {name: leaf for name, leaf in flatten_dict(adapted.params).items() if "adapter" in name}
    read = {name: leaf for name, leaf in flatten_dict(back.params).items() if "adapter" in name}
    assert ours.keys() == read.keys()
    for name, leaf in ours.items():
        np.testing.assert_allclose(read[name], leaf, atol=1e-6, err_msg=str(name))
    token_BL = np.random.default_rng(1).integers(0, 65, (2, 12))
    np.testing.assert_allclose(back.logits(token_BL), adapted.logits(token_BL), rtol=1e-5, atol=1e-5)


def test_ranks_and_scales_that_no_parts_explain_are_refused(imported, tmp_path):
    base, out = imported("gpt2"), tmp_path / "out"
    peft.export_adapter(adapted_run(base, "lora(on='all', rank=2)"), str(out))
    tensors = load_file(out / peft.WEIGHTS)
    name = next(name for name in tensors if name.endswith("h.1.attn.c_attn.lora_B.weight"))
    save_file(tensors | {name: tensors[name] + 1}, out / peft.WEIGHTS)
    with pytest.raises(
        UserError, match="has rank 2 and rank 6, of attn.c_attn, and gptjax has one rank for all matrices"
    ):
        peft.import_adapter(str(out), str(base), str(tmp_path / "back"))
    config = json.loads((out / peft.CONFIG).read_text())
    (out / peft.CONFIG).write_text(json.dumps(config | {"alpha_pattern": {}}))
    with pytest.raises(UserError, match="has updates of several scales"):
        peft.import_adapter(str(out), str(base), str(tmp_path / "back"))
