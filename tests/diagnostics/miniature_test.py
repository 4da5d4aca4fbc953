"""Miniatures keep what decides how a config lies on a mesh."""

import pytest
from places import ROOT

from gptjax.config.config_file import load_config
from gptjax.diagnostics import miniature
from gptjax.errors import UserError
from gptjax.parallel import meshes

CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 12, 25, 48, 64, 96, 100, 1000, 12288, 50257])
@pytest.mark.parametrize("least", [1, 10, 16])
def test_a_small_size_divides_by_two_as_the_size_does(size, least):
    small = miniature.small(size, least)
    assert small <= size and (small >= least or small == size)
    for shards in (2, 4, 8):
        assert (small % shards == 0) == (size % shards == 0)
    powers = [2**k for k in range(20)]
    assert (small in powers) == (size in powers)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_miniature_of_every_shipped_config_is_small_and_of_its_kind(file):
    config = load_config(str(file))
    mini = miniature.shrink(config, steps=3)
    model = mini.model
    assert model.d_model <= 256 and model.context_length <= 32 and model.vocab_size <= 512
    assert mini.train.batch_size * model.context_length <= 1024
    for field in ("norm", "norm_position", "final_norm", "mlp", "position", "bias", "tied_head", "qk_norm"):
        assert getattr(model, field) == getattr(config.model, field)
    for field in ("name", "schedule", "beta1", "beta2", "eps", "weight_decay", "clip_norm", "ema_decay"):
        assert getattr(mini.optim, field) == getattr(config.optim, field)
    for field in ("d_model", "n_heads", "kv_heads", "ff_size", "context_length"):
        for shards in (2, 4, 8):
            divides = getattr(config.model, field) % shards == 0
            assert (getattr(model, field) % shards == 0) == divides, (field, shards)
    assert (mini.train.microbatches > 1) == (config.train.microbatches > 1)
    assert model.max_dropout == 0 and model.dtype == "float32"


def test_grouped_heads_bands_and_an_odd_vocabulary_stay():
    file = str(CONFIGS[0].parent / "gpt3_175b.py")
    config = load_config(file, ["model.n_kv_heads=8", "model.band_width=256", "train.z_loss=1e-4"])
    model = miniature.shrink(config, steps=3).model
    assert model.n_heads // model.n_kv_heads == 12 and model.n_kv_heads == 8
    assert 1 < model.band_width < model.context_length and model.n_layers % 2 == 0
    assert model.vocab_size % 2 == 1 and model.padded_vocab_size % 6 == 0
    assert miniature.shrink(config, steps=3).train.z_loss == 1e-4


def test_what_the_whole_config_refuses_its_miniature_refuses_too():
    config = load_config(str(CONFIGS[0].parent / "gpt2_xl.py"))
    for whole in (config, miniature.shrink(config, steps=3)):
        with pytest.raises(UserError, match="does not divide over mesh.tensor=2"):
            meshes.check_fit(whole, dict.fromkeys(meshes.AXES, 1) | {"tensor": 2})


def test_what_is_left_out_is_said_and_nothing_else():
    config = load_config(str(CONFIGS[0].parent / "gpt2_xl.py"))
    lines = "\n".join(miniature.differences(config))
    assert "dropout is off" in lines and "float32 instead of bfloat16" in lines and "batch ramp" not in lines
    plain = config.replace(model={"embed_dropout": 0.0, "attention_dropout": 0.0, "residual_dropout": 0.0})
    assert "dropout" not in "\n".join(miniature.differences(plain))
