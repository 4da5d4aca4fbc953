"""Prompts: of files and of generators, as tokens that await an answer, train and held out apart."""

import json

import numpy as np
import pytest

from gptjax.config.config_file import from_dict
from gptjax.data.chat import chat_format
from gptjax.errors import UserError
from gptjax.posttrain import prompts as prompting
from gptjax.training import report


def config(**sections):
    values = {
        "model": dict(context_length=48),
        "data": dict(tokenizer="bytes", chat="gptjax"),
        "train": dict(steps=1, batch_size=8, loss="grpo"),
        "rl": dict(prompts="copying", rewards="exact", max_tokens=8, problems=30, eval_prompts=10),
    }
    return from_dict({name: values.get(name, {}) | sections.get(name, {}) for name in values})


@pytest.fixture
def of_file(tmp_path):
    """open_prompts of records."""

    def opened(*records, **sections):
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        rl = {"prompts": f"jsonl:{tmp_path / 'prompts.jsonl'}"} | sections.pop("rl", {})
        return prompting.open_prompts(config(rl=rl, **sections))

    return opened


def test_a_prompt_is_rendered_as_a_conversation_that_awaits_an_answer(of_file):
    messages = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    store = of_file({"prompt": "a?", "answer": "b"}, {"messages": messages}, data=dict(val_fraction=0.0))
    form = chat_format("gptjax")
    first, second = store.examples.train.prompts
    expected_L = form.prompt(first.messages, store.tokenizer)
    assert np.array_equal(first.token_L, expected_L) and np.array_equal(second.token_L, expected_L)
    assert first.record == {"prompt": "a?", "answer": "b"} and store.stop_ids == form.stop_ids(store.tokenizer)


def test_a_run_says_that_prompts_are_prompts_and_no_text_that_is_learnt(of_file):
    store = of_file(*({"prompt": letter} for letter in "abcde"), data=dict(val_fraction=0.2))
    [line] = report._prompt_lines(store)
    train, held_out = (
        sum(len(each.token_L) for each in part.prompts) for part in (store.examples.train, store.examples.val)
    )
    assert line == f"prompts    4 to train on ({train} tokens), 1 held out ({held_out}) (bytes tokenizer)"


def test_prompts_without_room_for_an_answer_are_counted_and_left_out_or_refused(of_file):
    records = [{"prompt": "a"}, {"prompt": "b" * 60}, {"prompt": "c"}]
    store = of_file(*records, data=dict(val_fraction=0.0))
    assert len(store.examples.train.prompts) == 2 and store.description["overflow"].startswith("1 of 3 prompts")
    with pytest.raises(UserError, match="prompts.jsonl:2 has 6. tokens; model.context_length=48 less rl.max_tokens=8"):
        of_file(*records, data=dict(val_fraction=0.0, chat_overflow="refuse"))


def test_a_record_without_a_prompt_is_left_out_and_named(of_file, capsys):
    store = of_file({"question": "a"}, {"prompt": "b"}, data=dict(val_fraction=0.0))
    assert len(store.examples.train.prompts) == 1
    assert (
        "prompts.jsonl:1 has no prompt: it has the fields 'question'; expected prompt or messages"
        in capsys.readouterr().err
    )


def test_generated_problems_to_train_on_are_none_of_those_held_out():
    store = prompting.open_prompts(config())
    train, val = (
        {prompt.record["prompt"] for prompt in part.prompts} for part in (store.examples.train, store.examples.val)
    )
    assert len(store.examples.train.prompts) == 30 and len(store.examples.val.prompts) == 10 and not train & val


def test_every_epoch_has_each_prompt_once_in_an_order_of_its_own():
    rows = prompting.TrainPrompts(prompting.open_prompts(config()), config())
    order = rows.order(np.arange(60)).reshape(2, 30)
    assert (np.sort(order, axis=1) == np.arange(30)).all() and (order[0] != order[1]).any()
    further = [prompt.where for prompt in rows.further_prompts(np.arange(30))]
    assert len(set(further)) == 30 and further != [prompt.where for prompt in rows.prompts(np.arange(30))]


def test_the_fingerprint_is_of_prompts_and_of_what_rewards_read(of_file):
    same, other, answered = (
        of_file(record, data=dict(val_fraction=0.0)).fingerprint
        for record in ({"prompt": "a"}, {"prompt": "b"}, {"prompt": "a", "answer": "1"})
    )
    assert len({same, other, answered}) == 3
    assert same == of_file({"prompt": "a"}, data=dict(val_fraction=0.0)).fingerprint


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("arithmetik(digits=1)", "is no generator and no file; did you mean 'arithmetic'?"),
        ("", "rl.prompts='' is no generator and no file; expected jsonl:FILE"),
        ("jsonl:no_such.jsonl", "rl.prompts=no_such.jsonl does not exist"),
        ("no/such.jsonl", "rl.prompts=no/such.jsonl does not exist"),
        ("text:README.md", "rl.prompts='text' is not known; expected one of: jsonl, parquet"),
        ("jsonl:", "rl.prompts='jsonl:': expected jsonl:PATH"),
    ],
)
def test_what_holds_no_prompts_is_refused_by_the_field_that_named_it(prompts, message):
    with pytest.raises(UserError) as raised:
        prompting.open_prompts(config(rl=dict(prompts=prompts, rewards="exact", max_tokens=8)))
    assert message in str(raised.value)
