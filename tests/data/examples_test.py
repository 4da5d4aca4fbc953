"""Labelled examples: what of a record becomes which tokens and label, and what becomes of records that are none."""

import dataclasses
import json

import numpy as np
import pytest

from gptjax.config import task_heads
from gptjax.config.fields import Config, DataConfig, ModelConfig, TrainConfig
from gptjax.data.examples import kinds, store
from gptjax.data.examples.rows import EvalExamples, TrainExamples
from gptjax.data.examples.task import CONTROL, Encoder
from gptjax.data.tokenizers.simple import ByteTokenizer
from gptjax.errors import UserError

BYTES = ByteTokenizer.read(None).with_special(CONTROL)
START, DELIMITER, CLASSIFY = (BYTES.special[name] for name in CONTROL)
HEADS = {
    "classes": "classes(n=2)",
    "numbers": "regression(n=1)",
    "choice": "choice",
    "tags": "token_classes(n=3)",
    "span": "span",
}


def head_of(name: str):
    return task_heads.of(ModelConfig(task_head=HEADS[name]))


def example(task: str, head: str, record: dict, context_length: int = 64, labelled: bool = True):
    made = kinds.of(DataConfig(task=task), head_of(head))
    return made.example(record, "here", Encoder(BYTES, context_length, made.keep), head_of(head), labelled)


def shown(ids) -> str:
    """ids with [ | ] for the control tokens."""
    marks = {START: "[", DELIMITER: "|", CLASSIFY: "]"}
    return "".join(marks.get(i) or BYTES.decode([i]) for i in ids.tolist())


def test_a_text_stands_between_control_tokens():
    made = example("classify", "classes", {"text": "good", "label": 1})
    assert [shown(ids) for ids in made.sequences] == ["[good]"] and made.label == 1 and made.cut == 0


def test_a_pair_has_a_delimiter_and_similarity_both_orders():
    record = {"text_a": "one", "text_b": "two", "label": 0}
    assert [shown(ids) for ids in example("pair", "classes", record).sequences] == ["[one|two]"]
    assert [shown(ids) for ids in example("similarity", "classes", record).sequences] == ["[one|two]", "[two|one]"]


def test_a_choice_has_a_sequence_for_each_of_its_texts():
    record = {"context": "it", "choices": ["rains", "pours", "is"], "label": 2}
    made = example("choice", "choice", record)
    assert [shown(ids) for ids in made.sequences] == ["[it|rains]", "[it|pours]", "[it|is]"] and made.label == 2


def test_no_text_can_spell_a_control_token():
    made = example("classify", "classes", {"text": "".join(CONTROL), "label": 1})
    assert np.isin(made.sequences[0], [START, DELIMITER, CLASSIFY]).sum() == 2


@pytest.mark.parametrize("keep, kept", [("start", "[abcdef|uvwxyz]"), ("end", "[cdefgh|uvwxyz]")])
def test_each_of_two_texts_is_cut_to_half_of_the_context_less_two(keep, kept):
    task = f"pair(keep='{keep}')"
    made = example(task, "classes", {"text_a": "abcdefgh", "text_b": "uvwxyz", "label": 0}, context_length=16)
    assert shown(made.sequences[0]) == kept and made.cut == 1
    assert len(made.sequences[0]) <= 16


def test_the_class_of_a_word_is_read_at_its_last_token():
    record = {"tokens": ["New", "York", "is"], "tags": ["B", "I", "O"]}
    made = example("tag(labels='O,B,I')", "tags", record)
    assert shown(made.sequences[0]) == "[New York is]"
    assert [BYTES.decode([made.sequences[0][place]]) for place in made.place_W] == ["w", "k", "s"]
    assert made.label.tolist() == [1, 2, 0]


def test_words_beyond_the_context_lose_their_labels_and_are_counted():
    record = {"tokens": ["New", "York", "is"], "tags": [1, 2, 0]}
    made = example("tag", "tags", record, context_length=11)
    assert shown(made.sequences[0]) == "[New York]" and made.label.tolist() == [1, 2] and made.cut == 1


@pytest.mark.parametrize("keep", ["start", "end"])
def test_an_answer_is_the_tokens_that_spell_it_whatever_their_bytes(keep):
    context = "né à Zürich, mort à Rome"
    for answer in ("Zürich", "né", "Rome", {"text": ["à"], "answer_start": [18]}):
        record = {"question": "où ?", "context": context, "answer": answer}
        made = example(f"answer(keep='{keep}')", "span", record)
        first, last = made.label
        expected = answer["text"][0] if isinstance(answer, dict) else answer
        assert BYTES.decode(made.sequences[0][first : last + 1]) == expected == made.answers[0]
    assert first > made.sequences[0].tolist().index(BYTES.encode("m")[0]), "the second à, as answer_start says"


def test_an_answer_that_is_cut_off_is_no_example_and_one_that_is_left_moves_with_its_text():
    record = {"question": "q", "context": "x" * 20 + "end", "answer": "end"}
    with pytest.raises(UserError, match="the answer is in what was cut off"):
        example("answer", "span", record, context_length=24)
    made = example("answer(keep='end')", "span", record, context_length=24)
    first, last = made.label
    assert BYTES.decode(made.sequences[0][first : last + 1]) == "end"


@pytest.mark.parametrize(
    "task, head, record, message",
    [
        ("classify", "classes", {"texxt": "a", "label": 0}, "here: field 'text' is missing; did you mean 'texxt'?"),
        ("classify", "classes", {"text": 3, "label": 0}, "here: field 'text' is a int; expected a text."),
        ("classify", "classes", {"text": "a", "label": 2}, "here: the label 2 is outside 0 to 1"),
        ("classify", "classes", {"text": "a", "label": True}, "here: the label True is no whole number"),
        ("classify", "classes", {"text": "a", "label": None}, "here: field 'label' is null"),
        (
            "classify(labels='no,yes')",
            "classes",
            {"text": "a", "label": "maybe"},
            "none of data.task's labels: no, yes",
        ),
        ("classify", "numbers", {"text": "a", "label": "high"}, "is not 1 finite numbers"),
        ("choice", "choice", {"context": "a", "choices": ["b"], "label": 0}, "no list of two texts or more"),
        ("choice", "choice", {"context": "a", "choices": ["b", "c"], "label": 2}, "the label 2 is outside 0 to 1"),
        ("tag", "tags", {"tokens": ["a", "b"], "tags": [1]}, "no list of 2 labels, one for each word"),
        ("answer", "span", {"question": "a", "context": "b", "answer": "c"}, "is not where it should be in 'context'"),
    ],
)
def test_a_record_that_is_no_example_says_where_and_what_was_expected(task, head, record, message):
    with pytest.raises(UserError) as error:
        example(task, head, record)
    assert str(error.value).startswith("here") and message in str(error.value)


@pytest.mark.parametrize(
    "task, head, message",
    [
        ("clasify", "classes", "did you mean 'classify'?"),
        ("classify(txt='a')", "classes", "classify has no parameter 'txt'; did you mean 'text'?"),
        ("classify(keep='middle')", "classes", "keep='middle' is not known; expected start or end."),
        ("classify", "span", "is not learnt by this model.task_head; use classes or regression."),
        ("classify(labels='a,b,c')", "classes", "names 3 labels, but model.task_head has 2 classes."),
    ],
)
def test_a_task_that_cannot_be_is_refused(task, head, message):
    with pytest.raises(UserError) as error:
        kinds.of(DataConfig(task=task), head_of(head))
    assert message in str(error.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Titled(kinds.Classify):
    """A text below its title, in one sequence."""

    title: str = "title"

    def texts(self, record, where):
        [[text]] = super().texts(record, where)
        return [[record[self.title], text]]


def test_a_task_of_one_s_own_is_a_class_and_an_entry(monkeypatch):
    monkeypatch.setitem(kinds.TASKS, "titled", Titled)
    made = example("titled(title='head')", "classes", {"head": "A", "text": "b", "label": 1})
    assert shown(made.sequences[0]) == "[A|b]"


# ---- a set


def config_of(folder, **data) -> Config:
    fields = dict(path=str(folder / "set.jsonl"), tokenizer="bytes", task="classify", cache_dir=str(folder)) | data
    return Config(
        ModelConfig(context_length=64, task_head="classes(n=2)"),
        DataConfig(**fields),
        train=TrainConfig(steps=1, batch_size=4, loss="classify"),
    )


@pytest.fixture
def folder(tmp_path):
    lines = [json.dumps({"text": f"text {i}", "label": i % 2}) for i in range(50)]
    lines[7:7] = ["not json", '{"text": "no label"}', "[1]", ""]
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_records_that_are_none_are_left_out_named_and_counted(folder, capsys):
    opened = store.open_examples(config_of(folder))
    assert sum(len(split.examples) for split in (opened.examples.train, opened.examples.val)) == 50
    said = capsys.readouterr().err
    assert "set.jsonl:8 is not JSON" in said and "set.jsonl:9: field 'label' is missing" in said
    assert "set.jsonl:10 holds a list" in said
    assert opened.description["left_out"]["count"] == 3


@pytest.mark.parametrize("how", ["tail", "document"])
def test_training_and_held_out_examples_are_the_set_in_two(how, folder):
    opened = store.open_examples(config_of(folder, val_split=how, val_fraction=0.2))
    train, val = (
        {shown(e.sequences[0]) for e in split.examples} for split in (opened.examples.train, opened.examples.val)
    )
    assert not train & val and len(train | val) == 50 and 2 <= len(val) <= 20
    if how == "tail":
        assert val == {f"[text {i}]" for i in range(40, 50)}


def test_the_fingerprint_is_of_texts_labels_and_tokenizer(folder):
    before = store.open_examples(config_of(folder)).fingerprint
    assert store.open_examples(config_of(folder)).fingerprint == before
    others = [config_of(folder, val_fraction=0.3), config_of(folder, task="classify(keep='end')")]
    text = (folder / "set.jsonl").read_text()
    assert all(store.open_examples(other).fingerprint != before for other in others)
    (folder / "set.jsonl").write_text(text.replace('"text 3", "label": 1', '"text 3", "label": 0'))
    assert store.open_examples(config_of(folder)).fingerprint != before


def test_rows_are_whole_epochs_in_an_order_of_the_seed_alone(folder):
    opened = store.open_examples(config_of(folder))
    rows, same, other = (TrainExamples(opened, seed, 1) for seed in (1, 1, 2))
    n = rows.rows_per_epoch["jsonl"]
    first, second = rows.order(0, n), rows.order(n, 2 * n)
    assert sorted(first) == sorted(second) == list(range(n)) and first.tolist() != second.tolist()
    assert np.array_equal(same.order(0, n), first) and not np.array_equal(other.order(0, n), first)
    whole, part = rows.rows(0, 10), rows.rows(4, 10)
    assert all(np.array_equal(whole[name][4:], part[name]) for name in whole)
    assert (
        np.array_equal(rows.hashes(0, 10)[4:], rows.hashes(4, 10)) and len(set(rows.hashes(0, 2 * n).tolist())) == 2 * n
    )


def test_a_row_is_no_longer_than_a_power_of_two_of_the_context_that_holds_the_longest(folder):
    opened = store.open_examples(config_of(folder))
    assert TrainExamples(opened, 0, 1).rows(0, 2)["token_BCL"].shape == (2, 1, 16)
    assert TrainExamples(opened, 0, 32).rows(0, 2)["token_BCL"].shape == (2, 1, 32)


def test_held_out_rows_beyond_the_last_have_no_weight(folder):
    opened = store.open_examples(config_of(folder, val_fraction=0.1))
    rows = EvalExamples.held_out(opened, 1)
    assert rows.num_rows == 5 and rows.rows(3, 8)["weight_B"].tolist() == [1, 1, 0, 0, 0]
    tokens = sum(len(example.sequences[0]) for example in rows.examples[:2])
    assert EvalExamples.held_out(opened, 1, max_tokens=tokens).num_rows == 2


def test_the_same_records_in_parquet_are_the_same_examples(folder):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    lines = [json.loads(line) for line in (folder / "set.jsonl").read_text().splitlines() if "text " in line]
    parquet.write_table(pyarrow.Table.from_pylist(lines), folder / "set.parquet")
    of_lines = store.open_examples(config_of(folder)).examples.train.examples
    of_table = store.open_examples(config_of(folder, path=str(folder / "set.parquet"))).examples.train.examples
    assert [shown(a.sequences[0]) for a in of_lines] == [shown(b.sequences[0]) for b in of_table]
    assert [int(a.label) for a in of_lines] == [int(b.label) for b in of_table]


def test_text_commands_refuse_a_labelled_set(folder):
    from gptjax.data import open_text

    with pytest.raises(UserError, match="gives labelled examples, but running text is read here"):
        open_text(config_of(folder).data, 64)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model=dict(task_head=None)), "the model has no head for them; set model.task_head"),
        (dict(data=dict(task=None)), "learns from labelled examples; set data.task"),
        (dict(train=dict(loss="tag")), "set train.loss='classify'."),
        (dict(train=dict(lm_coef=-1.0)), "train.lm_coef=-1.0 is negative"),
        (
            dict(model=dict(task_head=None), data=dict(task=None), train=dict(loss="next_token", lm_coef=0.5)),
            "train.lm_coef=0.5 weighs the language model's loss beside a task head's, and model.task_head is None",
        ),
        (dict(data=dict(packing="best_fit")), "data.packing='best_fit' is of running text"),
        (dict(train=dict(z_loss=1e-4)), "train.z_loss=0.0001 is of running text"),
        (dict(train=dict(label_smoothing=0.1)), "train.label_smoothing=0.1 is of running text"),
        (dict(train=dict(neftune_alpha=5.0)), "train.neftune_alpha=5.0 is of running text"),
        (dict(model=dict(task_head="classes(n=2, dropout=1.0)")), "dropout=1.0 is not in [0, 1)."),
        (dict(model=dict(task_head="classes(n=0)")), "n=0 is too small"),
    ],
)
def test_head_task_and_loss_that_do_not_go_together_are_refused(changes, message, folder):
    with pytest.raises(UserError) as error:
        config_of(folder).replace(**changes)
    assert message in str(error.value)
