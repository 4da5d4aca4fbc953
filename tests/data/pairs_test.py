"""Preferences: what of a record becomes which tokens, targets and scores, and what becomes of records that hold none."""

import dataclasses
import json

import numpy as np
import pytest

from gptjax import cli
from gptjax.config.fields import Config, DataConfig, ModelConfig, TrainConfig
from gptjax.data.chat import formats
from gptjax.data.chat.formats import CHATML, GPTJAX
from gptjax.data.pairs import forms, store
from gptjax.data.pairs.encoding import Encoder, TooLong
from gptjax.data.pairs.rows import EvalPairs, TrainPairs, batch_of
from gptjax.data.tokenizers.simple import ByteTokenizer
from gptjax.errors import UserError

BYTES = ByteTokenizer.read(None).with_special((*GPTJAX.symbols, *CHATML.symbols))
PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "22"}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def says(text: str) -> dict:
    return {"role": "assistant", "content": text}


def comparison(record: dict, kind: str = "compared"):
    return forms.from_record(record, "here", kind)


def encoded(record: dict, kind: str = "compared", form=GPTJAX, length: int = 64, overflow: str = "drop"):
    return Encoder(form, BYTES, length, overflow)(comparison(record, kind), "here")


def shown(ids) -> str:
    return BYTES.decode(ids, special=True)


def answers(record: dict) -> list[list[str]]:
    return [[message.content for message in answer] for answer in comparison(record).answers]


# ---- forms


FORMS = {
    "texts": PAIR,
    "messages": {"prompt": [user("2+2?")], "chosen": [says("4")], "rejected": [says("22")]},
    "the prompt repeated": {
        "prompt": "2+2?",
        "chosen": [user("2+2?"), says("4")],
        "rejected": [user("2+2?"), says("22")],
    },
    "whole conversations": {"chosen": [user("2+2?"), says("4")], "rejected": [user("2+2?"), says("22")]},
    "transcripts": {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 22"},
    "a ranking": {"prompt": "2+2?", "answers": ["22", "4"], "ranking": [2, 1]},
    "scores": {"prompt": "2+2?", "completions": ["22", "4"], "scores": [-0.5, 3]},
}


@pytest.mark.parametrize("name", FORMS)
def test_one_pair_is_the_same_tokens_in_every_form(name):
    made, expected = encoded(FORMS[name]), encoded(PAIR)
    assert [shown(ids) for ids in made.sequences] == [
        "<|endoftext|><|user|>2+2?<|end|><|assistant|>4<|end|>",
        "<|endoftext|><|user|>2+2?<|end|><|assistant|>22<|end|>",
    ]
    assert [is_target.tolist() for is_target in made.targets] == [is_target.tolist() for is_target in expected.targets]
    assert made.score_K.tolist() == ([3, -0.5] if name == "scores" else [1, 0])


def test_answers_of_a_ranking_stand_in_its_order_and_those_as_good_have_one_score():
    made = comparison({"prompt": "q", "answers": ["c", "a", "d", "b"], "ranking": [2, 1, 4, 2]})
    assert [answer[0].content for answer in made.answers] == ["a", "c", "b", "d"]
    assert made.scores == (3, 2, 2, 0)


def test_conversations_part_at_the_answer_in_which_they_differ_and_what_is_before_it_is_no_target():
    turns = [user("a"), says("b"), user("c")]
    made = encoded({"chosen": [*turns, says("d"), user("e"), says("f")], "rejected": [*turns, says("x")]})
    targets = ["".join(shown([i]) for i in ids[is_target]) for ids, is_target in zip(made.sequences, made.targets)]
    assert targets == ["d<|end|>f<|end|>", "x<|end|>"]
    assert shown(made.sequences[0][: made.prompt_length]).endswith("<|assistant|>b<|end|><|user|>c<|end|><|assistant|>")


def test_a_thumb_has_a_label_and_a_pair_a_margin():
    made = encoded({"prompt": "q", "completion": "a", "label": False}, "judged")
    assert made.label == 0 and len(made.sequences) == 1
    assert encoded(PAIR | {"margin": 2}).margin == 2.0 and encoded(PAIR | {"margin": None}).margin == 0


@pytest.mark.parametrize(
    "record, message",
    [
        (
            {"prompt": "q", "chosen": "a"},
            "has the fields 'prompt', 'chosen'; expected one of: prompt and chosen and rejected",
        ),
        ([1], "holds a list; expected an object"),
        (PAIR | {"rejected": "4"}, "the same answer is better than itself"),
        (PAIR | {"rejected": ""}, "(assistant) is empty"),
        (PAIR | {"chosen": [user("a")]}, "chosen begins with a message of the user"),
        (PAIR | {"margin": "x"}, "margin='x'; expected a finite number"),
        ({"chosen": [user("a"), says("b")], "rejected": [user("c"), says("b")]}, "have no message in common"),
        ({"chosen": [user("a"), says("b")], "rejected": [user("a"), says("b")]}, "differ in no answer"),
        ({"chosen": "4", "rejected": "5"}, "is a text without a prompt"),
        ({"prompt": "q", "answers": ["a", "b"], "ranking": [1, 1]}, "as good as each other"),
        ({"prompt": "q", "answers": ["a", "b"], "ranking": [1]}, "no list of 2 whole numbers"),
        ({"prompt": "q", "answers": ["a"], "ranking": [1]}, "answers is no list of two answers or more"),
        ({"prompt": "q", "completions": ["a", "b"], "scores": [1, float("nan")]}, "no list of 2 finite numbers"),
        ({"prompt": "q", "completions": ["a", "b"], "scores": [1, 10**400]}, "no list of 2 finite numbers"),
        ({"prompt": "q", "completions": ["a", "b"], "scores": [1, 1 + 1e-12]}, "as good as each other"),
        (PAIR | {"margin": 1e39}, "expected a finite number"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "here: prompt has no messages"),
    ],
)
def test_a_record_that_holds_no_preference_says_where_and_what_was_expected(record, message):
    with pytest.raises(UserError) as error:
        comparison(record)
    assert str(error.value).startswith("here") and message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("label", [2, "yes", 1.0, None])
def test_a_label_that_is_no_thumb_is_refused(label):
    with pytest.raises(UserError, match="^here"):
        comparison({"prompt": "q", "completion": "a", "label": label}, "judged")


# ---- tokens


def test_what_a_format_writes_behind_the_end_token_is_left_out():
    made = encoded(PAIR, form=CHATML)
    assert shown(made.sequences[0]).endswith("assistant\n4<|im_end|>") and made.targets[0][-1]


def test_a_format_that_writes_the_prompt_otherwise_before_an_answer_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Other(formats.TurnFormat):
        def prompt_pieces(self, messages, tokenizer):
            return super().prompt_pieces(messages, tokenizer)[1:]

    with pytest.raises(
        UserError, match="here: the chat format 'gptjax' writes a prompt otherwise when an answer follows"
    ):
        encoded(PAIR, form=Other(**vars(GPTJAX)))


def test_what_is_too_long_is_dropped_or_cut_to_its_beginning():
    long = PAIR | {"chosen": "4" * 60}
    with pytest.raises(TooLong, match="here has 69 tokens, more than model.context_length=64"):
        encoded(long)
    made = encoded(long, overflow="cut")
    assert (
        [len(ids) for ids in made.sequences] == [64, 11]
        and made.cut == 1
        and not shown(made.sequences[0]).endswith(">")
    )
    with pytest.raises(TooLong, match="nothing of its answers is left"):
        encoded(PAIR | {"prompt": "q" * 70}, overflow="cut")


def test_an_answer_that_is_judged_alone_is_cut_as_one_of_several_is():
    made = encoded({"prompt": "2+2?", "completion": "4" * 60, "label": True}, "judged", overflow="cut")
    assert [len(ids) for ids in made.sequences] == [64] and made.cut == 1 and made.targets[0].any()


def test_a_batch_has_the_arrays_that_losses_read():
    examples = [
        encoded(PAIR | {"margin": 0.5}),
        encoded({"prompt": "q", "answers": ["a", "bb", "c"], "ranking": [3, 1, 2]}),
    ]
    batch = batch_of(examples, 3, 16)
    assert {name: array.shape for name, array in batch.items()} == {
        "token_BKT": (2, 3, 17), "length_BK": (2, 3), "weight_BKL": (2, 3, 16), "score_BK": (2, 3), "margin_B": (2,),
        "prompt_length_B": (2,), "weight_B": (2,),
    }  # fmt: skip
    assert batch["length_BK"].tolist() == [[10, 11, 0], [8, 7, 7]] and batch["score_BK"].tolist() == [
        [1, 0, 0],
        [2, 1, 0],
    ]
    assert batch["margin_B"].tolist() == [0.5, 0] and batch["prompt_length_B"].tolist() == [8, 5]
    for b, k in ((0, 1), (1, 0)):
        target_L = batch["token_BKT"][b, k, 1:][batch["weight_BKL"][b, k] > 0]
        assert shown(target_L) == ["22<|end|>", "bb<|end|>"][b]
    thumbs = batch_of([encoded({"prompt": "q", "completion": "a", "label": 1}, "judged")], 1, 16)
    assert thumbs["label_B"].tolist() == [1]


# ---- a set


def config_of(folder, **data) -> Config:
    fields = dict(path=str(folder / "set.jsonl"), tokenizer="bytes", chat="gptjax", preferences="compared")
    return Config(
        ModelConfig(context_length=64, task_head="score"),
        DataConfig(**fields | dict(cache_dir=str(folder)) | data),
        train=TrainConfig(steps=1, batch_size=4, loss="reward"),
    )


def record(i: int) -> dict:
    return {"prompt": f"q {i // 2}", "chosen": f"a {i}", "rejected": f"bb {i}"}


@pytest.fixture
def folder(tmp_path):
    lines = [json.dumps(record(i)) for i in range(50)]
    lines[7:7] = ["not json", '{"prompt": "no answers"}', "[1]", "", json.dumps(PAIR | {"chosen": "4" * 80})]
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    return tmp_path


def texts(part) -> set[str]:
    return {shown(example.sequences[0]) for example in part.examples}


def test_records_that_hold_none_are_left_out_named_and_counted_and_long_ones_apart(folder, capsys):
    opened = store.open_pairs(config_of(folder))
    assert sum(len(part.examples) for part in (opened.examples.train, opened.examples.val)) == 50
    said = capsys.readouterr().err
    assert "set.jsonl:8 is not JSON" in said and "set.jsonl:9 holds no preference" in said
    assert "longer than model.context_length=64: 1 of 51 examples dropped" in said
    assert opened.description["left_out"]["count"] == 3 and opened.description["too_long"]["dropped"] == 1
    with pytest.raises(UserError, match="more than model.context_length=64. Use a larger one"):
        store.open_pairs(config_of(folder, chat_overflow="refuse"))


def test_held_out_by_document_all_answers_to_a_prompt_fall_to_one_side(folder):
    opened = store.open_pairs(config_of(folder, val_split="document", val_fraction=0.3))
    train, val = (
        {text.split("<|end|>")[0] for text in texts(part)} for part in (opened.examples.train, opened.examples.val)
    )
    assert not train & val and len(train | val) == 25 and len(val) > 2


def test_the_fingerprint_is_of_tokens_scores_margins_and_split(folder):
    before = store.open_pairs(config_of(folder)).fingerprint
    assert store.open_pairs(config_of(folder)).fingerprint == before
    text = (folder / "set.jsonl").read_text()
    assert store.open_pairs(config_of(folder, val_fraction=0.3)).fingerprint != before
    for changed in (text.replace('"a 3"', '"a 4"'), text.replace('"a 3"', '"a 3", "margin": 1')):
        (folder / "set.jsonl").write_text(changed)
        assert store.open_pairs(config_of(folder)).fingerprint != before


def test_the_same_records_in_parquet_and_of_datasets_are_the_same_examples(folder):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": [user(f"q {i}")], "chosen": [says(f"a {i}")], "rejected": [says(f"b {i}")]} for i in range(20)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    opened = [store.open_pairs(config_of(folder, path=str(folder / name))) for name in ("rows.jsonl", "rows.parquet")]
    assert opened[0].fingerprint == opened[1].fingerprint
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    saved = store.open_pairs(config_of(folder, source="hf", path=str(folder / "saved")))
    assert saved.fingerprint == opened[0].fingerprint


def test_rows_are_whole_epochs_and_held_out_ones_beyond_the_last_have_no_weight(folder):
    opened = store.open_pairs(config_of(folder))
    rows = TrainPairs(opened, 1, 1)
    n = rows.rows_per_epoch["jsonl"]
    assert sorted(rows.order(0, n)) == list(range(n)) == sorted(rows.order(n, 2 * n))
    whole, part = rows.rows(0, 10), rows.rows(4, 10)
    assert all(np.array_equal(whole[name][4:], part[name]) for name in whole)
    held_out = store.rows_of(opened.examples.val.examples, opened.head, opened.tokenizer, config_of(folder), 1)
    assert isinstance(held_out, EvalPairs) and held_out.num_rows == 5
    batch = held_out.rows(3, 8)
    assert batch["weight_B"].tolist() == [1, 1, 0, 0, 0] and not batch["weight_BKL"][2:].any()


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(data=dict(preferences="ranked")), "data.preferences='ranked' is not known"),
        (dict(data=dict(chat=None)), "is of conversations, but data.chat is None"),
        (dict(data=dict(packing="best_fit")), "data.packing='best_fit' is of running text"),
        (dict(data=dict(task="classify")), "are both set; set one of them to None"),
        (
            dict(data=dict(preferences=None, chat=None)),
            "model.task_head='score' learns from preferences; set data.preferences='compared'",
        ),
        (dict(data=dict(preferences="judged")), "compares no answers, which model.task_head='score' learns from"),
        (dict(model=dict(task_head=None)), "the model has no head for it; set model.task_head='score'"),
        (dict(train=dict(loss="classify")), "does not train model.task_head='score'; set train.loss='reward'"),
        (dict(train=dict(lm_coef=0.5)), "train.lm_coef=0.5 is of running text"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(changes, message, folder):
    with pytest.raises(UserError) as error:
        config_of(folder).replace(**changes)
    assert message in str(error.value)


def test_gptjax_data_shows_answers_with_their_targets_and_counts_them(folder, capsys):
    file = folder / "config.py"
    values = dict(
        model=dict(context_length=64, task_head="score"),
        data=dict(path=str(folder / "set.jsonl"), tokenizer="bytes", chat="gptjax", preferences="compared"),
        train=dict(steps=9, batch_size=4, loss="reward"), checkpoint=dict(every_steps=None), eval=dict(every_steps=None),
    )  # fmt: skip
    file.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({values!r})\n")
    assert cli.main(["data", f"--config={file}", "--step=2", "--row=1"]) == 0
    printed = capsys.readouterr().out
    assert "answer 0, score 1:" in printed and "⟦<|assistant|>⟧⟪a " in printed and "answer 1, score 0:" in printed
    assert cli.main(["data", f"--config={file}", "--stats", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["train"]["pairs"] == 45 and facts["held_out"]["examples"] == 5 and facts["too_long"]["dropped"] == 1
    assert facts["train"]["chosen_longer"] == 0 and facts["train"]["answers"] == {"2": 45}
    assert facts["train"]["rejected_tokens"]["mean"] == facts["train"]["chosen_tokens"]["mean"] + 1
    assert cli.main(["data", f"--config={file}", "--stats"]) == 0
    assert "45 pairs, 0 ties" in capsys.readouterr().out
    assert cli.main(["data", f"--config={file}", "--verify"]) == 2
