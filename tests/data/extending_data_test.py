"""A source, a tokenizer and an objective from outside: one class and one entry of text_kinds each, used by `gptjax train`."""

import json

import numpy as np
import pytest
import runs

from gptjax import cli
from gptjax.config import config_file, text_kinds
from gptjax.data import sources
from gptjax.data.rows.objectives import Objective
from gptjax.data.sources.records import Document, Source, Unit
from gptjax.data.tokenizers.base import END_OF_TEXT, Tokenizer
from gptjax.errors import UserError
from gptjax.run import run
from gptjax.rundir import metrics


def _counted(config, unit, on_error):
    for number in range(unit.first, unit.stop):
        yield Document(f"{number} and {number + 1}. " * 20, f"{config.path} number {number}")


NUMBERS = Source(
    identity=lambda config: {"numbers": config.path},
    units=lambda config, unit_bytes: [Unit("numbers", (config.path,), 0, int(config.path))],
    read=_counted,
)


class Halves(Tokenizer):
    """A byte is two tokens: its upper and its lower four bits."""

    kind = "halves"

    def __init__(self):
        # The text of a byte stands with its lower half, whatever the upper one was: byte counts are what matters here.
        super().__init__([b""] * 16 + [b"?"] * 16 + [b""], {END_OF_TEXT: 32}, definition=b"")

    @classmethod
    def train(cls, config, documents):
        return cls()

    @classmethod
    def read(cls, path):
        return cls()

    @classmethod
    def from_definition(cls, definition):
        return cls()

    def encode(self, text):
        byte_N = np.frombuffer(text.encode(), np.uint8)
        return np.stack([byte_N >> 4, 16 + (byte_N & 15)], axis=1).reshape(-1).astype(np.int32)


class EverySecond(Objective):
    """Only what stands at odd positions of a row is learnt."""

    def __call__(self, batch, key_B):
        return batch | {"weight_BL": batch["weight_BL"] * (np.arange(batch["weight_BL"].shape[1]) % 2 == 1)}


@pytest.fixture
def kinds(monkeypatch):
    """They are named; "module:name" is looked up where this test runs, as in a file of one's own."""
    here = __name__
    monkeypatch.setitem(text_kinds.SOURCES, "numbers", text_kinds.Source(f"{here}:NUMBERS", endings=(".numbers",)))
    monkeypatch.setitem(text_kinds.TOKENIZERS, "halves", f"{here}:Halves")
    monkeypatch.setitem(text_kinds.OBJECTIVES, "every_second", text_kinds.Objective(f"{here}:EverySecond"))


@pytest.fixture
def small(values, tmp_path):
    """A run of two steps on the text, by the tokenizer and for the objective from outside."""
    data = dict(
        source="numbers", path="90", tokenizer="halves", objective="every_second", cache_dir=str(tmp_path / "cache")
    )
    train = dict(steps=2, batch_size=8)
    fields = dict(data=data, train=train, eval=dict(every_steps=None, max_tokens=64), checkpoint=dict(every_steps=None))
    return runs.changed(values, **fields)


def test_a_source_a_tokenizer_and_an_objective_from_outside_train_by_the_public_command(kinds, small, tmp_path):
    workdir = tmp_path / "run"
    assert cli.main(["train", runs.write_config(small, tmp_path / "fields.py"), f"--workdir={workdir}"]) == 0
    manifest = json.loads((workdir / "manifest.json").read_text())
    assert json.loads((workdir / "tokenizer" / "tokenizer.json").read_text())["kind"] == "halves"
    assert manifest["data"]["source"]["source"] == "numbers" and manifest["data"]["source"]["numbers"] == "90"
    assert [row["step"] for row in runs.train_rows(workdir)] == [1, 2]
    [last] = metrics.read_metrics(workdir / "metrics.jsonl", "eval")
    assert np.isfinite(last["loss"])
    assert isinstance(run.load(workdir).tokenizer, Halves)


def test_the_objective_from_outside_decides_what_is_learnt(kinds, small):
    from gptjax.data.rows.pipeline import TrainRows, open_text

    config = config_file.from_dict(small)
    store, objective = open_text(config.data, config.model.context_length)
    assert type(objective).__name__ == "EverySecond"
    weight_BL = TrainRows(store, config.data, 16, objective).rows(0, 4)["weight_BL"]
    assert not weight_BL[:, ::2].any() and weight_BL[:, 1::2].all()


def test_a_source_from_outside_is_named_by_a_spec_or_by_the_ending_of_its_files(kinds, small, tmp_path):
    base = config_file.from_dict(small).data
    assert sources.from_spec("numbers:7", base).path == "7"
    file = tmp_path / "seven.numbers"
    file.write_text("7")
    assert sources.from_spec(str(file), base).source == "numbers"
    with pytest.raises(UserError, match="source 'numbers:': expected numbers:PATH"):
        sources.from_spec("numbers:", base)
    with pytest.raises(UserError, match="data.source='numbers' needs data.path, a file, folder or glob"):
        config_file.from_dict(runs.changed(small, data=dict(path=None)))


def test_an_entry_whose_code_is_not_there_is_a_line_that_names_it(monkeypatch, small):
    monkeypatch.setitem(text_kinds.SOURCES, "numbers", text_kinds.Source("no_such_file:NUMBERS"))
    with pytest.raises(UserError, match="data.source='numbers' is no_such_file:NUMBERS, but Python finds no module"):
        list(sources.documents(config_file.from_dict(small).data))
