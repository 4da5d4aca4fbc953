"""Rows of text beside rollouts are those of pretraining, with all that keeps them apart."""

import functools
import json

import jax
import numpy as np
import pytest

from gptjax.config.config_file import from_dict
from gptjax.config.fields import Config, DataConfig, ModelConfig, TrainConfig
from gptjax.config.rl_fields import RLConfig
from gptjax.models import architectures
from gptjax.posttrain import policy_losses
from gptjax.posttrain.ptx import TextRows
from gptjax.training import losses, session


def test_text_beside_conversations_compiles_one_loss_for_all_of_its_tokens():
    """Text has no tokens whose logits could be spared; a loss for each share of a row would be a switch in the program."""
    model = ModelConfig(vocab_size=40, context_length=16, n_layers=1, d_model=8, n_heads=2, dtype="float32")
    sections = {"data": DataConfig(chat="gptjax"), "train": TrainConfig(steps=2, batch_size=4, loss="grpo")}
    config = Config(model=model, **sections, rl=RLConfig(prompts="copying", rewards="exact", group=2, max_tokens=4))
    graph, params, _ = architectures.abstract(model)
    rows = {"token_BT": jax.ShapeDtypeStruct((4, 16), "int32"), "weight_BL": jax.ShapeDtypeStruct((4, 15), "float32")}

    def branches(loss, batch) -> int:
        return str(jax.make_jaxpr(lambda *given: loss(*given, None, graph=graph, config=config))(params, batch)).count(
            "branches="
        )

    assert branches(policy_losses.ptx, {f"ptx_{name}": array for name, array in rows.items()}) == 0
    assert branches(lambda *given, **kinds: losses.next_token(*given, **kinds)[0], rows) == 1


def test_documents_in_a_row_of_text_see_only_themselves_where_the_config_keeps_them_apart(tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{i} squared is {i * i}."}) + "\n" for i in range(300)))
    values = {
        "model": dict(context_length=16, n_layers=1, d_model=16, n_heads=2, dtype="float32"),
        "data": dict(tokenizer="bytes", mask_documents=True, cache_dir=str(tmp_path / "cache")),
        "train": dict(steps=4, batch_size=8, steps_per_call=2, log_every=2, loss="grpo(ptx_coef=1.0)"),
        "rl": dict(
            prompts="copying(shortest=2, longest=3)", problems=20, eval_prompts=8, rewards="exact", group=4, max_tokens=3,
            ptx=f"jsonl:{texts}", ptx_rows=64,
        ),
        "eval": dict(every_steps=None),
    }  # fmt: skip
    made = session.prepare(from_dict(values))
    batch = {name: array[1] for name, array in TextRows(made).batch(0, [8.0, 8.0]).items()}
    rows = {name.removeprefix("ptx_"): array for name, array in batch.items()}
    assert (rows["segment_BT"].max(axis=1) > rows["segment_BT"].min(axis=1)).any()  # a row has several documents
    assert rows["weight_BL"].sum() == pytest.approx(8.0)
    functions = {"graph": made.program.graph, "config": made.config}
    params, key = made.program.init().params, jax.random.key(0)
    ptx = jax.jit(functools.partial(policy_losses.ptx, **functions))(params, batch, key)[0]
    next_token = jax.jit(functools.partial(losses.next_token, **functions))
    together = {name: rows[name] for name in ("token_BT", "weight_BL")}
    assert ptx == next_token(params, rows, key)[0]
    assert not np.isclose(ptx, next_token(params, together, key)[0], rtol=1e-6)
