"""Classifiers as transformers' classes: the tensors that gave the golden outputs come out as they went in, by their names."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from gptjax.config.fields import Config, DataConfig, MeshConfig, ModelConfig, TrainConfig
from gptjax.data import tokenizers
from gptjax.data.tokenizers.symbols import SYMBOLS
from gptjax.errors import UserError
from gptjax.huggingface import exporting
from gptjax.models import architectures
from gptjax.run import run
from gptjax.rundir import model_directory, run_directory

GPT2 = ModelConfig(vocab_size=260, context_length=16, n_layers=2, d_model=12, n_heads=3, dtype="float32")
LLAMA = dataclasses.replace(
    GPT2, n_heads=2, position="rope", norm="rmsnorm", mlp="swiglu", bias=False, tied_head=False, d_ff=20
)
TASKS = {
    "classes(n=3, bias=False)": ("classify(labels='no,yes,perhaps')", "classify"),
    "regression(n=2, bias=False)": ("classify", "regress"),
    "token_classes(n=4)": ("tag", "tag"),
}
KINDS = [("GPT2", GPT2), ("Llama", LLAMA)]


def run_of(folder, model: ModelConfig, head: str, task: str | None = None):
    """A run with drawn parameters."""
    told, loss = TASKS.get(head, (task, "classify"))
    tokenizer = tokenizers.from_spec("bytes").with_special(SYMBOLS["task"])
    model = dataclasses.replace(model, task_head=head, vocab_size=tokenizer.vocab_size)
    config = Config(
        model, DataConfig(task=task or told), train=TrainConfig(steps=1, batch_size=8, loss=loss, tensorboard=False)
    )
    config = config.replace(mesh=dataclasses.asdict(MeshConfig()), checkpoint=dict(every_steps=None))
    import jax

    params = architectures.split(architectures.make(model, jax.random.key(0)))[1]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.float32(0.3 * rng.standard_normal(leaf.shape)), params)
    directory = run_directory.open_run(folder)
    model_directory.write(
        directory, config, params, tokenizer, {"imported": {"from": "test", "folder": "here", "files": {}}}
    )
    return run.read(folder)


@pytest.fixture(params=[(name, model, head) for name, model in KINDS for head in TASKS], ids=lambda p: f"{p[0]} {p[2]}")
def exported(request, tmp_path):
    """(name of the family, Run, folder, what the export says)."""
    name, model, head = request.param
    loaded = run_of(tmp_path / "run", model, head)
    return name, loaded, tmp_path / "out", exporting.export_run(loaded, str(tmp_path / "out"))


def test_a_classifier_is_written_as_the_class_of_its_task(exported):
    name, loaded, folder, about = exported
    head, config = loaded.config.model.task_head, json.loads((folder / "config.json").read_text())
    of_tokens = head.startswith("token")
    expected = f"{name}{'ForTokenClassification' if of_tokens else 'ForSequenceClassification'}"
    assert config["architectures"] == [expected] == [about["architecture"]]
    arrays = load_file(folder / "model.safetensors")
    matrix = "classifier" if of_tokens and name == "GPT2" else "score"
    np.testing.assert_array_equal(arrays[f"{matrix}.weight"], loaded.params["task_head"]["weight"].T)
    assert (f"{matrix}.bias" in arrays) == of_tokens and "lm_head.weight" not in arrays
    assert config["pad_token_id"] == loaded.tokenizer.special["<|start|>"]
    if head.startswith("classes"):
        assert config["id2label"] == {"0": "no", "1": "yes", "2": "perhaps"}
    assert any("data.task=" in note for note in about["notes"])


def test_transformers_gives_the_outputs_of_ours(exported):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import jax
    import torch

    from gptjax.config import task_heads
    from gptjax.models import labelled

    _, loaded, folder, about = exported
    theirs = getattr(transformers, about["architecture"]).from_pretrained(folder).eval()
    length_B, tokens = np.array([9, 4]), np.random.default_rng(1).integers(0, 256, (2, 9))
    tokens[:, 0], pad = 65, loaded.tokenizer.special["<|start|>"]
    tokens[1, 4:] = pad
    with torch.no_grad():
        expected = theirs(
            torch.tensor(tokens), attention_mask=torch.tensor(np.arange(9) < length_B[:, None])
        ).logits.numpy()
    batch = {"token_BCL": tokens[:, None].astype(np.int32), "length_BC": length_B[:, None].astype(np.int32)}
    head, graph = task_heads.of(loaded.config.model), loaded.graph
    ours = jax.jit(lambda p: labelled.outputs(p, batch, graph=graph, mesh_config=MeshConfig(), head=head)[0])(
        loaded.params
    )
    at = (np.arange(9) < length_B[:, None]) if head.reads_tokens else ...
    np.testing.assert_allclose(np.asarray(ours)[at], expected[at], atol=2e-5)


@pytest.mark.parametrize(
    "head, task, message",
    [
        (
            "classes(n=3)",
            "classify",
            "that class has no bias, and this head has one; train it with model.task_head='classes(..., bias=False)'",
        ),
        ("classes(n=3, bias=False)", "similarity", "it adds the activations of a pair's two orders"),
    ],
)
def test_what_no_class_computes_is_refused_before_anything_is_written(head, task, message, tmp_path):
    loaded = run_of(tmp_path / "run", GPT2, head, task)
    with pytest.raises(UserError) as error:
        exporting.export_run(loaded, str(tmp_path / "out"))
    assert message in str(error.value) and "GPT2ForSequenceClassification" in str(error.value)
    assert not (tmp_path / "out").exists()
