"""What is shown of a step is what training reads in it, token for token and hash for hash."""

import numpy as np
import pytest

from gptjax import schedule
from gptjax.config.fields import Config, DataConfig, ModelConfig, TrainConfig
from gptjax.data.looking import inspection
from gptjax.data.rows import objectives
from gptjax.data.rows.pipeline import TrainRows
from gptjax.data.rows.reading import Calls
from gptjax.data.tokenizers import train_tokenizer
from gptjax.data.tokens.folder import TextStore
from gptjax.data.tokens.shards import MemoryShard, Tokens
from gptjax.data.tokens.store import TokenStore
from gptjax.errors import UserError

LENGTH = 24
TEXTS = {
    "plain": ["the fox", "a dog\nand a cat sleep in the long grass of summer", "one", "nul\0 \0", "two two", "x" * 90],
    "wide": ["你好，世界", "naïve café", "<|endoftext|>", "emoji 😀 and more of them 😀😀", "zz"],
}
TOKENIZER = train_tokenizer(DataConfig(tokenizer="bytes"), [])
OBJECTIVES = ["next_token", "fim", "prefix_lm", "masked_lm", "span_corruption"]


def tokens_of(texts: list[str]) -> Tokens:
    parts = [np.append(TOKENIZER.encode(text), TOKENIZER.eot_id) for text in texts]
    start = np.cumsum([0, *map(len, parts)])[:-1]
    return Tokens([MemoryShard(np.concatenate(parts), start)])


def make(tmp_path, objective="next_token", **data):
    """(config, rows, tokenizer) of both sources, in a run with a batch ramp."""
    config = Config(
        model=ModelConfig(context_length=LENGTH, n_layers=1, d_model=8, n_heads=1),
        data=DataConfig(
            mixture={name: f"{name}.txt" for name in TEXTS},
            objective=objective,
            tokenizer="bytes",
            cache_dir=str(tmp_path),
            mask_rate=0.3,
            **data,
        ),
        train=TrainConfig(steps=12, batch_size=6, batch_ramp_start=2, batch_ramp_increment=2, batch_ramp_tokens=500),
    )
    sources = {
        name: TextStore(tokens_of(texts), tokens_of(texts), str(i) * 64, {}, name)
        for i, (name, texts) in enumerate(TEXTS.items())
    }
    made = objectives.make_objective(config.data, TOKENIZER, LENGTH)
    rows = TrainRows(TokenStore(TOKENIZER, sources), config.data, LENGTH, made)
    return config, rows, TOKENIZER.with_special(made.symbols)


def training_reads(config, rows, step: int) -> tuple[dict, int]:
    """The batch of a step and the hash of its rows, as the loop gets them."""
    ranges = {size: ((0, size),) for size in schedule.batch_sizes(config)}
    call = Calls(rows, config, 1, ranges, ranges)[step]
    return {name: value[0] for name, value in call["batch"][0].items()}, int(call["hash_S"][0])


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_row_shown_is_the_one_that_training_reads(tmp_path, objective, packing):
    config, rows, tokenizer = make(tmp_path, objective, packing=packing)
    read_hash = 0
    for step in range(schedule.total_steps(config)):
        batch, of_step = training_reads(config, rows, step)
        facts = inspection.step_facts(config, rows, tokenizer, step + 1, None)
        assert facts["batch_hash_before"] == f"{read_hash:016x}"
        read_hash = (read_hash + of_step) % 2**64
        assert facts["batch_hash"] == facts["rows"][-1]["batch_hash"] == f"{read_hash:016x}"
        assert [row["tokens"] for row in facts["rows"]] == batch["token_BT"].tolist()
        assert [row["weights"] for row in facts["rows"]] == batch["weight_BL"].tolist()
        assert facts["batch_size"] == schedule.batch_size(config, step)
        assert facts["first_row"] == schedule.rows_before(config, step)
    alone = inspection.step_facts(config, rows, tokenizer, step + 1, 2)
    assert alone["rows"] == [facts["rows"][2]] and alone["batch_hash"] == facts["batch_hash"]


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_parts_of_a_row_are_its_text_and_hold_what_is_predicted(tmp_path, objective, packing):
    config, rows, tokenizer = make(tmp_path, objective, packing=packing)
    padded = 0
    for row in inspection.row_facts(rows, tokenizer, 0, 60):
        n = LENGTH + 1 - (objective == "masked_lm") - row["padding"]
        assert row["text"] == tokenizer.decode(row["tokens"][:n], special=True)
        if row["text"].isascii() or objective != "masked_lm":
            assert "".join(part["text"] for part in row["parts"]) == row["text"]
        assert row["predicted"] + row["weight_0"] == LENGTH
        assert all(token == 0 for token in row["tokens"][n:])
        if objective != "masked_lm":
            assert not any(row["weights"][n - 1 :])
        ascii_row = row["text"].isascii()
        if ascii_row and objective == "masked_lm":
            assert row["predicted"] == sum("target" in part for part in row["parts"])
        elif ascii_row:  # there a character is a token
            text = sum(len(part["text"]) for part in row["parts"] if part["kind"] == "text" and part["predicted"])
            special = sum(part["kind"] == "special" and part["predicted"] for part in row["parts"])
            assert row["predicted"] == text + special
        padded += row["padding"]
    if objective == "next_token":
        assert (padded > 0) == (packing == "best_fit")


def test_targets_in_place_are_the_text_before_it_was_hidden(tmp_path):
    config, rows, tokenizer = make(tmp_path, "masked_lm", packing="best_fit")
    plain = TrainRows(rows_store(rows), config.data, LENGTH - 1, objectives.NextToken())
    _, _, id_B = rows.locate(0, 20)
    for row, original in zip(
        inspection.row_facts(rows, tokenizer, 0, 20), inspection.row_facts(plain, TOKENIZER, 0, 20)
    ):
        restored = "".join(part.get("target", part["text"]) for part in row["parts"])
        if original["text"].isascii():
            assert restored == original["text"]
        assert row["predicted"] > 0


def rows_store(rows: TrainRows) -> TokenStore:
    """The store that rows were made of."""
    sources = {
        name: TextStore(part.tokens, part.tokens, str(i) * 64, {}, name)
        for i, (name, part) in enumerate(rows.by_source.items())
    }
    return TokenStore(TOKENIZER, sources)


@pytest.mark.parametrize("data", [dict(), dict(mask_documents=True), dict(packing="best_fit")], ids=str)
def test_a_row_tells_where_its_text_lies(tmp_path, data):
    config, rows, tokenizer = make(tmp_path, **data)
    per_epoch, seen = rows.rows_per_epoch, dict.fromkeys(TEXTS, 0)
    for row in inspection.row_facts(rows, tokenizer, 0, 80):
        source, spans = TEXTS[row["source"]], []
        whole = tokens_of(source)
        starts = whole.document_starts(np.arange(len(source)))
        for piece in row["pieces"]:
            spans.append(whole.read(np.array([piece["first_token"]]), piece["tokens"])[0])
            for number, at in (("first_document", 0), ("last_document", piece["tokens"] - 1)):
                token = piece["first_token"] + at
                assert piece[number] == np.flatnonzero(starts <= token)[-1]
        assert np.concatenate(spans).tolist() == row["tokens"][: LENGTH + 1 - row["padding"]]
        document = TOKENIZER.encode(source[row["document"]])
        first = [*document.tolist(), TOKENIZER.eot_id][row["offset"] :][: row["pieces"][0]["tokens"]]
        assert row["tokens"][: len(first)] == first
        assert row["epoch"] == seen[row["source"]] // per_epoch[row["source"]]
        boundaries = sum(part["kind"] == "boundary" for part in row["parts"])
        assert row["documents"] == boundaries + 1 - bool(row["padding"] and data.get("packing") is None)
        seen[row["source"]] += 1
    assert all(n > per_epoch[name] for name, n in seen.items())


def test_a_character_of_several_tokens_is_whole_unless_the_row_cuts_it():
    ids = np.append(TOKENIZER.encode("é😀z"), TOKENIZER.eot_id)
    row = {"token_BT": ids, "weight_BL": np.ones(len(ids) - 1, np.float32)}
    shown = inspection.parts(row, TOKENIZER)
    assert [part["text"] for part in shown] == ["é😀z", "<|endoftext|>"]
    row = {"token_BT": ids[1:5], "weight_BL": np.ones(3, np.float32)}
    shown = inspection.parts(row, TOKENIZER)
    assert [(part["text"], part["predicted"]) for part in shown] == [("\ufffd", False), ("\ufffd", True)]


def test_text_that_looks_like_a_special_token_is_text():
    ids = np.append(TOKENIZER.encode("<|endoftext|>"), TOKENIZER.eot_id)
    row = {"token_BT": ids, "weight_BL": np.ones(len(ids) - 1, np.float32)}
    kinds = [(part["kind"], part["text"]) for part in inspection.parts(row, TOKENIZER)]
    assert kinds == [("text", "<"), ("text", "|endoftext|>"), ("special", "<|endoftext|>")]


def test_earlier_rows_are_hashed_in_pieces(tmp_path, monkeypatch):
    _, rows, _ = make(tmp_path)
    whole, said = inspection.hash_before(rows, [(0, 1000)]), []
    monkeypatch.setattr(inspection, "_CHUNK", 64)
    assert inspection.hash_before(rows, [(0, 1000)], lambda *progress: said.append(progress)) == whole
    assert len(said) == 16 and said[-1] == (1000, 1000)
    assert whole == int(rows.hashes(0, 1000).sum(dtype=np.uint64))


@pytest.mark.parametrize(
    "step, row, expected",
    [
        (13, None, "--step=13: the run has 12 steps; give one from 1 to 12, as the log counts them"),
        (0, None, "--step=0: the run has 12 steps"),
        (-1, None, "--step=-1: the run has 12 steps"),
        (1, 2, "--row=2: step 1 has 2 rows; give one from 0 to 1"),
        (12, 6, "--row=6: step 12 has 6 rows; give one from 0 to 5"),
        (1, -1, "--row=-1: step 1 has 2 rows"),
    ],
)
def test_a_step_or_row_that_is_not_there_is_refused(tmp_path, step, row, expected):
    config, rows, tokenizer = make(tmp_path)
    with pytest.raises(UserError, match=expected):
        inspection.step_facts(config, rows, tokenizer, step, row)
