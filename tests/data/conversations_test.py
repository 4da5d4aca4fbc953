"""Conversations as training data: what of them is a target, what becomes of long ones, and folders that hold them."""

import dataclasses
import json

import numpy as np
import preparing
import pytest

from gptjax import cli
from gptjax.config.fields import Config, DataConfig, TrainConfig
from gptjax.data import sources
from gptjax.data.looking import verification
from gptjax.data.rows import conversations
from gptjax.data.rows.objectives import NextToken
from gptjax.data.rows.pipeline import TrainRows, held_out_rows, open_text
from gptjax.data.tokens import store as stores
from gptjax.data.tokens.folder import open_folder
from gptjax.data.tokens.shards import MappedShard, MemoryShard, RemoteShard, ShardWriter, Tokens
from gptjax.errors import UserError
from gptjax.evaluation import texts


def conversation(*turns: str) -> dict:
    """Of a user and an assistant in turns."""
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]}


def config_of(tmp_path, records=None, **fields) -> DataConfig:
    file = tmp_path / "c.jsonl"
    if records is not None:
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    chat = dict(
        chat="gptjax", packing="best_fit", val_split="document", tokenizer="bytes", cache_dir=str(tmp_path / "cache")
    )
    return DataConfig(**dict(source="jsonl", path=str(file), val_fraction=0.0) | chat | fields)


def rows_of(config: DataConfig, context_length: int):
    """(TrainRows, tokenizer) of a config."""
    store, objective = open_text(config, context_length)
    return TrainRows(store, config, context_length, objective), store.tokenizer


def targets(rows: TrainRows, tokenizer) -> list[str]:
    """The text of the targets of each row of an epoch."""
    [count] = rows.rows_per_epoch.values()
    batch = rows.rows(0, count)
    chosen = (token_T[1:][weight_L > 0] for token_T, weight_L in zip(batch["token_BT"], batch["weight_BL"]))
    return [tokenizer.decode(token_L, special=True) for token_L in chosen]


# ---- targets


def test_the_three_losses_read_the_same_tokens_and_take_their_own_of_them(tmp_path):
    config = config_of(tmp_path, [conversation("a", "b", "c", "d")])
    expected = {
        "assistant": ["b<|end|>d<|end|>"],
        "last": ["d<|end|>"],
        "all": ["<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>d<|end|>"],
    }
    for loss, wanted in expected.items():
        assert targets(*rows_of(dataclasses.replace(config, chat_loss=loss), 32)) == wanted
    assert len(list((tmp_path / "cache").glob("tokens-*"))) == 1


def test_the_last_run_of_targets_stays_and_no_other():
    assert conversations.last_answer(np.float32([0, 1, 1, 0, 2, 0.5, 0])).tolist() == [0, 0, 0, 0, 2, 0.5, 0]
    assert conversations.last_answer(np.float32([1, 0, 1, 0, 1, 1])).tolist() == [0, 0, 0, 0, 1, 1]
    assert conversations.last_answer(np.float32([1, 1, 0])).tolist() == [1, 1, 0]
    assert conversations.last_answer(np.float32([0, 0])).tolist() == [0, 0]


def test_a_message_has_the_weight_that_its_record_says(tmp_path):
    record = conversation("a", "b", "c", "d")
    record["messages"][1]["weight"], record["messages"][3]["weight"] = 0.1, 0
    rows, _ = rows_of(config_of(tmp_path, [record]), 32)
    weight_L = rows.rows(0, 1)["weight_BL"][0]
    assert weight_L[weight_L > 0].tolist() == [np.float32(0.1)] * 2  # "b" and its end


# ---- longer than a row


LONG = [conversation("q", "x" * 9), conversation("q" * 40, "x"), conversation("q", "y" * 60), conversation("q", "z")]


def test_a_long_conversation_is_dropped_cut_or_refused_as_the_config_says(tmp_path):
    config = config_of(tmp_path, LONG)
    rows, tokenizer = rows_of(config, 20)
    assert sorted("".join(targets(rows, tokenizer)).split("<|end|>")) == ["", "x" * 9, "z"]
    assert rows.by_source["jsonl"].overflow.left_out == 2
    rows, tokenizer = rows_of(dataclasses.replace(config, chat_overflow="cut"), 20)
    assert sorted(targets(rows, tokenizer)) == ["x" * 9 + "<|end|>", "y" * 16, "z<|end|>"]
    assert str(rows.by_source["jsonl"].overflow) == (
        "the training text: 2 of 4 conversations are longer than a row of 21 tokens (the first is number 1, the longest has 66):"
        " cut to their beginning, 1 of them dropped, whose beginning has no target"
    )
    with pytest.raises(UserError, match="2 of 4 conversations are longer than a row of 21 tokens .*; use a larger"):
        rows_of(dataclasses.replace(config, chat_overflow="refuse"), 20)
    with pytest.raises(UserError, match="has no conversation that fits a row of 4 tokens"):
        rows_of(config, 3)


def test_a_conversation_as_long_as_a_row_is_whole(tmp_path):
    rows, tokenizer = rows_of(config_of(tmp_path, [conversation("q", "a" * 9)]), 14)  # 15 tokens
    assert targets(rows, tokenizer) == ["a" * 9 + "<|end|>"] and rows.by_source["jsonl"].overflow.too_long == 0


# ---- held out


def held_out(tokens, tokenizer, config, context_length: int, max_tokens=None):
    return held_out_rows(tokens)(tokens, tokenizer, context_length, config, NextToken(), max_tokens)


def test_held_out_conversations_are_whole_in_order_and_each_target_is_predicted_once(tmp_path):
    records = [conversation("q" * (1 + i % 5), "a" * (1 + i % 7), "r", "b" * (1 + i % 3)) for i in range(40)]
    config = config_of(tmp_path, records, val_fraction=0.5)
    store = stores.prepare(config)
    val, tokenizer = store.sources["jsonl"].val, store.tokenizer
    rows = held_out(val, tokenizer, config, 64)
    batch = rows.rows(0, rows.num_rows + 3)
    texts = [
        tokenizer.decode(token_T[1:][weight_L > 0], special=True)
        for token_T, weight_L in zip(batch["token_BT"], batch["weight_BL"])
    ]
    whole = tokenizer.decode(val.read(np.array([0]), val.n_tokens)[0], special=True)
    answers = [part.split("<|end|>")[0] + "<|end|>" for part in whole.split("<|assistant|>")[1:]]
    assert "".join(texts) == "".join(answers) and not any(texts[rows.num_rows :])
    assert batch["weight_BL"].sum() == val.n_targets
    assert batch["bytes_B"].sum() == len("".join(answers).replace("<|end|>", ""))
    first = held_out(val, tokenizer, config, 64, max_tokens=60)
    assert first.num_rows == 1 and 0 < first.rows(0, 1)["weight_BL"].sum() < val.n_targets


# ---- shards


def test_weights_are_read_as_they_were_written_near_and_far_and_checked(tmp_path):
    rng = np.random.default_rng(0)
    token, weight = rng.integers(0, 300, 9000), rng.random(9000).astype(np.float32)
    writer = ShardWriter(tmp_path, np.uint16, weighted=True)
    for first, stop in ((0, 10), (10, 8000), (8000, 9000)):
        writer.add(token[first:stop], 0, weight[first:stop])
    entry = writer.close()
    assert entry["targets"] == 9000 and {"weights/zarr.json", "weights/c/0"} < entry["files"].keys()
    for kind, where in ((MappedShard, tmp_path), (RemoteShard, f"file://{tmp_path}")):
        read = np.empty(5000, np.float32)
        Tokens([kind(f"{where}/weights", 9000, "float32")]).fill([read], np.array([3000]), np.array([8000]))
        assert (read == weight[3000:8000]).all()
    data = bytearray((tmp_path / "weights" / "c" / "0").read_bytes())
    data[20_000] ^= 1
    (tmp_path / "weights" / "c" / "0").write_bytes(data)
    with pytest.raises(UserError, match="block 1 of c/0 has another CRC"):
        Tokens([MappedShard(f"{tmp_path}/weights", 9000, "float32")]).fill([read], np.array([3000]), np.array([8000]))


def test_the_shards_of_text_have_no_weights(tmp_path):
    writer = ShardWriter(tmp_path, np.uint16)
    writer.add(np.arange(10), 10)
    assert writer.close()["files"].keys() == {"zarr.json", "c/0", "documents.bin"}
    assert not (tmp_path / "weights").exists() and Tokens([MemoryShard(np.arange(10))]).weights is None


# ---- sources


FORMS = [
    conversation("2+2", "4"),
    {"prompt": "2+2", "completion": "4"},
    {"instruction": "2+2", "input": "", "output": "4"},
    {"conversations": [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}]},
]


def test_every_source_of_records_gives_the_same_conversations(tmp_path):
    import pyarrow
    import pyarrow.parquet
    from source_files import array_record

    records = [conversation("2+2", "4"), conversation("a", "b", "c", "d")]
    lines = [json.dumps(record) for record in records]
    config = config_of(tmp_path, records)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "c.parquet")
    array_record(tmp_path / "c.arrayrecord", lines)
    expected = [document.conversation.messages for document in sources.whole_documents(config)]
    assert len(expected) == 2 and expected[0][1].content == "4"
    for kind in ("parquet", "arrayrecord"):
        other = dataclasses.replace(config, source=kind, path=str(tmp_path / f"c.{kind}"))
        assert [document.conversation.messages for document in sources.whole_documents(other)] == expected


def test_a_bad_record_is_left_out_and_named_and_ends_nothing(tmp_path, capsys):
    records = [*FORMS, conversation("no answer"), {"text": "no conversation"}, conversation("x", "y")]
    store = stores.prepare(config_of(tmp_path, records))
    assert store.sources["jsonl"].train.n_documents == 5
    left_out = store.description["left_out"]
    assert left_out["count"] == 2 and f"{tmp_path}/c.jsonl:5 has no target" in left_out["messages"][0]
    assert "left out: " + left_out["messages"][1] in capsys.readouterr().err


def test_text_of_conversations_decides_what_is_held_out_whatever_the_format(tmp_path):
    records = [conversation(f"question {i}", f"answer {i}") for i in range(60)]
    counts = {
        chat: stores.prepare(config_of(tmp_path, records, val_fraction=0.3, chat=chat)).sources["jsonl"].val.n_documents
        for chat in ("gptjax", "chatml")
    }
    assert counts["gptjax"] == counts["chatml"] > 5


# ---- gptjax prepare


def prepared(tmp_path, records, *flags: str):
    file = tmp_path / "c.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    common = ["prepare", f"--source={file}", "--tokenizer=bytes", f"--out={tmp_path / 'out'}", "--workers=1"]
    return cli.main([*common, "--format=chat", *flags])


def test_prepare_makes_the_tokens_and_weights_that_training_makes(tmp_path, capsys):
    records = [conversation(f"q{i}", "a" * (1 + i % 9)) for i in range(50)] + [conversation("no answer")]
    assert prepared(tmp_path, records, "--val_fraction=0.2") == 0
    said = capsys.readouterr().out
    assert "targets" in said and "turns" in said and "c.jsonl:51 has no target" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sum(split["turns"] for split in report["splits"].values()) == 100
    assert report["failures"]["count"] == 1
    tokenizer, folder = open_folder(tmp_path / "out")
    cached = stores.prepare(config_of(tmp_path, val_fraction=0.2))
    assert tokenizer.hash == cached.tokenizer.hash
    for split in ("train", "val"):
        ours, theirs = getattr(folder, split), getattr(cached.sources["jsonl"], split)
        assert preparing.documents(ours) == preparing.documents(theirs) and ours.n_targets == theirs.n_targets
        read = [np.empty(tokens.n_tokens, np.float32) for tokens in (ours, theirs)]
        for tokens, into in zip((ours, theirs), read):
            tokens.weights.fill([into], np.array([0]), np.array([tokens.n_tokens]))
        assert (read[0] == read[1]).all()
    assert verification.verify(tmp_path / "out")["bad"] == []


REFUSED = {
    "--clean=unicode": "--clean=unicode is of text, and --format=chat reads conversations; leave it out.",
    "--dedup=exact": "--dedup=exact is of text",
    "--text_field=body": "--text_field=body is of text",
    "--template=nonsense": "--template='nonsense' is not known",
}


@pytest.mark.parametrize("flag", REFUSED)
def test_prepare_refuses_a_flag_that_means_nothing_for_conversations(flag, tmp_path, capsys):
    assert prepared(tmp_path, FORMS, flag) != 0
    assert REFUSED[flag] in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_is_read_as_what_it_holds(tmp_path):
    assert prepared(tmp_path, FORMS, "--val_fraction=0") == 0
    folder = dict(source="prepared", path=str(tmp_path / "out"))
    assert stores.prepare(config_of(tmp_path, **folder)).sources["prepared"].train.weights is not None
    for chat, why in (
        ("chatml", "holds conversations in the format 'gptjax', but data.chat='chatml'"),
        (None, "data.chat=None"),
    ):
        with pytest.raises(UserError, match=f"{why}; set data.chat='gptjax'."):
            stores.prepare(config_of(tmp_path, chat=chat, **folder))


# ---- other text, and configs


def test_a_run_of_conversations_is_evaluated_on_others_and_on_text(tmp_path):
    config = config_of(tmp_path, FORMS)
    tokenizer = stores.prepare(config).tokenizer
    (tmp_path / "t.txt").write_text("plain text")
    specs = {"chat": f"jsonl:{tmp_path}/c.jsonl", "text": f"text:{tmp_path}/t.txt"}
    made = texts.others(specs, tokenizer, config)
    assert made["chat"].tokens.n_targets == 8 and made["chat"].tokens.n_documents == 4  # "4" and its end
    assert made["text"].tokens.weights is None
    with pytest.raises(UserError, match="--stride=4: conversations are read whole"):
        conversations.EvalConversations(made["chat"].tokens, tokenizer, 64, config, NextToken(), stride=4)


WRONG = {
    "packing": (dict(packing="concat"), "use 'best_fit', which keeps each conversation whole"),
    "val_split": (dict(val_split="tail"), "use 'document'"),
    "objective": (dict(objective="fim"), "use 'next_token'"),
    "source": (dict(source="text"), "needs conversations, but data.source='text' is text"),
    "loss": (dict(chat_loss="lasst"), "did you mean 'last'"),
    "overflow": (dict(chat_overflow="truncate"), "expected one of: drop, cut, refuse"),
    "unused": (dict(chat=None, chat_loss="all", packing="concat"), "is of conversations, but data.chat is None"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_config_that_conversations_cannot_have_is_refused_in_a_line(name, tmp_path):
    fields, why = WRONG[name]
    with pytest.raises(UserError, match=why):
        Config(train=TrainConfig(steps=1), data=config_of(tmp_path, **fields))


def test_a_path_to_text_is_refused_for_conversations(tmp_path):
    (tmp_path / "t.txt").write_text("text")
    config = dataclasses.replace(config_of(tmp_path), source="corpus", path=str(tmp_path / "t.txt"))
    with pytest.raises(UserError, match="t.txt is read as text .text., but data.chat='gptjax' needs conversations"):
        stores.prepare(config)
