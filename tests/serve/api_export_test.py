"""What vLLM and SGLang read of a folder that `gptjax export --to=hf` writes, to serve it."""

import json

import pytest
import serving
from places import ROOT

import gptjax
from gptjax.huggingface import exporting, importing


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """{name: (folder, run)} of a GPT-2 of bytes with conversations, and of a Llama."""
    place = tmp_path_factory.mktemp("exported")
    llama = ROOT / "tests" / "golden" / "hf" / "llama_plain"
    importing.import_folder(str(llama), str(place / "llama_run"), tokenizer="ids")
    paths = {"gpt2": serving.write_run(place / "gpt2_run"), "llama": place / "llama_run"}
    folders = {}
    for name, path in paths.items():
        run = gptjax.load(path)
        exporting.export_run(run, str(place / name))
        folders[name] = place / name, run
    return folders


@pytest.mark.parametrize("name,architecture", [("gpt2", "GPT2LMHeadModel"), ("llama", "LlamaForCausalLM")])
def test_an_export_names_what_a_server_needs(exported, name, architecture):
    folder, run = exported[name]
    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    assert config["architectures"] == [architecture] and config["model_type"] == name
    context = config["n_positions" if name == "gpt2" else "max_position_embeddings"]
    assert context == run.config.model.context_length and config["vocab_size"] == run.config.model.vocab_size
    ends = generation["eos_token_id"]
    assert config["eos_token_id"] == run.tokenizer.eot_id == (ends[0] if isinstance(ends, list) else ends) is not None
    assert config.get("dtype", config.get("torch_dtype")) == "float32"
    assert (folder / "model.safetensors").exists()


def test_an_export_of_a_run_of_conversations_has_its_template_and_ends(exported):
    folder, run = exported["gpt2"]
    form = run.chat_format()
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert set(ends) == set(form.stop_ids(run.tokenizer))
    tokenizer = folder / "tokenizer_config.json"
    template = folder / "chat_template.jinja"
    written = template.read_text() if template.exists() else json.loads(tokenizer.read_text())["chat_template"]
    assert "<|assistant|>" in written and "add_generation_prompt" in written
