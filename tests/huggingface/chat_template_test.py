"""Chat templates of folders of transformers: kept by an import, written by an export."""

import dataclasses
import json

import chat_folders
import numpy as np
import pytest
import runs

import gptjax
from gptjax import cli
from gptjax.data import tokenizers
from gptjax.data.chat import Conversation, Message, chat_format, from_record, kinds
from gptjax.data.rows.pipeline import TrainRows, open_text
from gptjax.huggingface import exporting, importing

CHATML = chat_format("chatml").template
MESSAGES = [Message("system", "s"), Message("user", " Grüße <|end|>"), Message("assistant", "a"), Message("user", "q")]
MESSAGES = (*MESSAGES, Message("assistant", "b\n"))
MODEL = dict(context_length=64, n_layers=1, d_model=16, n_heads=2, d_ff=16, dtype="float32")


def ids(form, tokenizer) -> list[int]:
    return form.render(Conversation(MESSAGES, "here"), tokenizer).token_L.tolist()


def there_and_back(folder, tmp_path, name="out"):
    """(the run that the folder became, the folder that it was exported to)."""
    about = importing.import_folder(str(folder), str(tmp_path / "run"))
    assert not any("template" in note for note in about["notes"])
    run = gptjax.load(tmp_path / "run")
    exporting.export_run(run, str(tmp_path / name))
    return run, tmp_path / name


def test_a_template_in_the_tokenizer_s_config_comes_back_where_it_was(tmp_path):
    folder = chat_folders.write(tmp_path / "in", chat_template=CHATML, pad_token="<|end|>")
    run, out = there_and_back(folder, tmp_path)
    assert json.loads((out / "tokenizer_config.json").read_text()) == json.loads(
        (folder / "tokenizer_config.json").read_text()
    )
    assert not (out / "chat_template.jinja").exists() and ids(run.chat_format(), run.tokenizer) == ids(
        chat_format("chatml"), run.tokenizer
    )


def test_a_template_file_comes_back_byte_for_byte(tmp_path):
    template = "\n{{ eos_token }}{{ bos_token is defined }}" + CHATML + "\n\n"
    run, out = there_and_back(chat_folders.write(tmp_path / "in", template=template), tmp_path)
    assert (out / "chat_template.jinja").read_bytes() == template.encode()
    assert run.tokenizer.decode(ids(run.chat_format(), run.tokenizer), special=True).startswith(
        "\n<|endoftext|>False<|im_"
    )


def test_a_template_that_is_broken_is_kept_and_said_when_it_is_used(tmp_path, capsys):
    run, out = there_and_back(chat_folders.write(tmp_path / "in", template="{% for"), tmp_path)
    assert (out / "chat_template.jinja").read_text() == "{% for"
    assert cli.main(["sample", f"--workdir={tmp_path / 'run'}", "--chat", "--prompt=a"]) == 2
    assert "the chat template is not a Jinja template" in capsys.readouterr().err


def test_a_template_of_another_type_is_a_note_of_the_import(tmp_path):
    folder = chat_folders.write(tmp_path / "in", chat_template=3)
    about = importing.import_folder(str(folder), str(tmp_path / "run"))
    assert any(note.startswith("the chat template is not read:") for note in about["notes"])


@pytest.fixture(scope="module", params=runs.default_or_slow(["gptjax", "llama3", "template"], ["template"]))
def exported(request, tmp_path_factory):
    """(run, folder of transformers) of a run that was trained on conversations in a format."""
    place = tmp_path_factory.mktemp(request.param)
    pairs = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "yes"}] for i in range(40)]
    (place / "chat.jsonl").write_text("".join(json.dumps({"messages": pair}) + "\n" for pair in pairs))
    name = request.param
    if name == "template":
        name = f"template:{place / 'mine.jinja'}"
        (place / "mine.jinja").write_text("{{ bos_token }}" + CHATML)
    data = dict(path=str(place / "chat.jsonl"), tokenizer="bytes", chat=name, packing="best_fit", val_split="document")
    values = dict(
        model=MODEL,
        data=data | dict(cache_dir=str(place / "cache"), val_fraction=0.4),
        train=dict(steps=1, batch_size=8, tensorboard=False),
        eval=dict(every_steps=None, max_tokens=64),
    )
    assert cli.main(["train", runs.write_config(values, place / "config.py"), f"--workdir={place / 'run'}"]) == 0
    if request.param == "template":
        (place / "mine.jinja").unlink()
    run = gptjax.load(place / "run")
    exporting.export_run(run, str(place / "out"))
    return run, place / "out"


def test_an_export_has_a_template_that_gives_the_ids_of_the_run(exported):
    run, out = exported
    tokenizer = tokenizers.from_spec(f"hf:{out}")
    ours = ids(run.chat_format(), run.tokenizer)
    assert ids(kinds.of_folder(out), tokenizer) == ours


def test_training_and_answers_have_the_tokens_of_one_function(exported):
    """A row of training holds whole conversations as render gives them, and run.chat begins as render does."""
    run, form = exported[0], exported[0].chat_format()
    store, objective = open_text(dataclasses.replace(run.config.data, chat=form.name), MODEL["context_length"])
    rows = TrainRows(store, run.config.data, MODEL["context_length"], objective).rows(0, 8)
    kept = 0
    for i in range(40):
        messages = (Message("user", f"{i}?"), Message("assistant", "yes"))
        token_L, weight_L = form.render(Conversation(messages, "here"), run.tokenizer)
        prompt = run.tokenizer.decode(token_L, special=True).partition("yes")[0]
        if i == 0:
            assert run.chat(f"{i}?", max_tokens=1).prompt == prompt
        for token_T, row_weight_L in zip(rows["token_BT"], rows["weight_BL"]):
            for start in _places(token_T, token_L):
                kept += 1
                assert row_weight_L[start : start + len(token_L) - 1].tolist() == weight_L[1:].tolist()
    assert kept >= 8


def test_a_run_is_evaluated_on_conversations_without_the_file_of_its_template(exported, tmp_path):
    run = exported[0]
    record = {"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "yes"}]}
    (tmp_path / "one.jsonl").write_text(json.dumps(record) + "\n")
    token_L, weight_L = run.chat_format().render(from_record(record, "here"), run.tokenizer)
    [found] = run.evaluate(f"jsonl:{tmp_path / 'one.jsonl'}").values()
    assert found.tokens == np.count_nonzero(weight_L) and len(token_L) > found.tokens


def _places(token_T, token_L) -> list[int]:
    """Where token_L stands in token_T."""
    size = len(token_L)
    return [i for i in range(len(token_T) - size + 1) if token_T[i : i + size].tolist() == token_L.tolist()]


def test_generate_of_transformers_ends_answers_of_an_export_where_the_run_does(exported):
    run, out = exported
    eos_ids = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert eos_ids[0] == run.tokenizer.eot_id and set(eos_ids) == set(run.chat_format().stop_ids(run.tokenizer))
    importing.import_folder(str(out), str(out.parent / "again"))
    assert gptjax.load(out.parent / "again").tokenizer.eot_id == run.tokenizer.eot_id


def test_transformers_loads_an_export_and_gives_the_ids_of_the_run(exported):
    transformers = pytest.importorskip("transformers")
    run, out = exported
    theirs = transformers.AutoTokenizer.from_pretrained(str(out))
    messages = [{"role": m.role, "content": m.content.replace("<|end|>", "")} for m in MESSAGES]
    found = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    conversation = Conversation(tuple(Message(**message) for message in messages), "here")
    rendered = run.chat_format().render(conversation, run.tokenizer)
    assert found["input_ids"] == rendered.token_L.tolist()
    assert found["assistant_masks"] == rendered.weight_L.tolist()
    prompt = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt == run.chat_format().prompt(conversation.messages[:-1], run.tokenizer).tolist()
