"""Runs that start from the parameters of another (train.start_from): what they take, what they keep, what they refuse."""

import json
import shutil

import jax
import numpy as np
import pytest
import runs
from judging import trained_values
from places import ROOT

from gptjax import cli
from gptjax.config.config_file import from_dict
from gptjax.config.fields import Config, MeshConfig, ModelConfig, TrainConfig
from gptjax.data import tokenizers
from gptjax.huggingface import exporting, importing
from gptjax.models import architectures
from gptjax.parallel import meshes
from gptjax.run import run
from gptjax.rundir import metrics, run_directory
from gptjax.training import new_symbols, origins
from gptjax.training import program as programs

STEPS = 4
SMALL = ModelConfig(vocab_size=127, context_length=16, n_layers=2, d_model=32, n_heads=4, dtype="float32")


def started(values, origin) -> dict:
    """A config that starts from a run of `trained_values`, of the same model."""
    return runs.changed(
        trained_values(values),
        train=dict(steps=STEPS, start_from=str(origin)),
        checkpoint=dict(every_steps=2, keep=9),
        eval=dict(every_steps=None),
    )


@pytest.fixture(scope="module")
def start(values, trained, tmp_path_factory):
    """start(name, from_=trained, **sections) trains a run of 4 steps from another, by the command; its directory."""
    folder = tmp_path_factory.mktemp("started")

    def train(name, origin=trained, **sections):
        ours = runs.changed(started(values, origin), **sections)
        arguments = [runs.write_config(ours, folder / f"{name}.py"), f"--workdir={folder / name}"]
        return cli.main(["train", *arguments]), folder / name

    return train


def params_of(workdir, step) -> dict:
    return runs.saved_arrays(workdir, step, ("params",))


def test_a_run_starts_with_the_parameters_of_another_and_a_new_optimizer(start, trained, capsys):
    code, workdir = start("same")
    assert code == 0 and f"starts from the parameters of step 6 of {trained}" in capsys.readouterr().err
    assert run_directory.open_run(workdir).steps() == [0, 2, 4]
    theirs, ours = params_of(trained, 6), params_of(workdir, 0)
    assert theirs.keys() == ours.keys() and all(np.array_equal(array, ours[name]) for name, array in theirs.items())
    assert not any(array.any() for array in runs.saved_arrays(workdir, 0, ("opt_state",)).values())
    assert run.load(workdir, 0).evaluate() == run.load(trained, 6).evaluate()
    started = run_directory.open_run(workdir).manifest()["started_from"]
    assert (started["run"], started["step"], started["initialised"]) == (str(trained), 6, [])
    assert started["run_id"] == run_directory.open_run(trained).manifest()["run_id"]


def test_it_goes_on_bit_equal_after_a_kill_and_without_the_other_run(start, trained, tmp_path):
    origin = shutil.copytree(trained, tmp_path / "origin")
    _, undisturbed = start("undisturbed", origin)
    disturbed = shutil.copytree(undisturbed, undisturbed.with_name("disturbed"))
    shutil.rmtree(disturbed / "checkpoints" / "4")
    shutil.rmtree(disturbed / "checkpoints" / "2")  # as if it had been killed before it had saved a step
    origin.rename(tmp_path / "moved")
    code, disturbed = start("disturbed", origin)
    assert code == 0
    assert runs.losses(disturbed) == runs.losses(undisturbed)
    runs.assert_same_state(undisturbed, disturbed, STEPS)
    assert run_directory.open_run(disturbed).manifest()["started_from"]["run"] == str(origin)


def test_a_new_head_is_initialised_and_listed_and_trained_alone_on_another_mesh(start, trained, capsys):
    mesh, head = dict(fsdp=4, tensor=2), dict(tied_head=False)
    changed = {"mesh": mesh, "model": head}
    code, workdir = start("head", train=dict(trainable="head"), **changed)
    assert code == 0 and "newly initialised: head" in capsys.readouterr().err
    assert run_directory.open_run(workdir).manifest()["started_from"]["initialised"] == ["head"]
    theirs, ours, later = params_of(trained, 6), params_of(workdir, 0), params_of(workdir, STEPS)
    assert ours.keys() - theirs.keys() == {"params['head']"}
    assert ours["params['head']"].std() > 0 and not np.array_equal(ours["params['head']"], later["params['head']"])
    for name, array in theirs.items():
        assert np.array_equal(array, ours[name]) and np.array_equal(array, later[name]), name
    names = runs.saved_arrays(workdir, STEPS, ("opt_state",))
    assert {name.rpartition("['")[2] for name in names if "mu" in name or "nu" in name} == {"head']"}
    assert run.load(workdir, ema=True).loss("abc").mean < 10


def test_the_best_step_is_the_one_of_the_lowest_loss_that_has_a_checkpoint(trained, tmp_path):
    copy = run_directory.open_run(shutil.copytree(trained, tmp_path / "run"))
    lines = [json.loads(line) for line in copy.metrics.read_text().splitlines()]
    losses = {2: 1.0, 4: 2.0, 6: 3.0}  # step 2 has no checkpoint any more
    lines = [row | {"loss": losses[row["step"]]} if "loss" in row and row["kind"] == "eval" else row for row in lines]
    copy.metrics.write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert {row["step"] for row in metrics.read_metrics(copy.metrics, "eval")} == losses.keys() and copy.steps() == [
        4,
        6,
    ]
    assert origins.best_step(copy, str(copy.path)) == 4
    not_numbers = [row | {"loss": "nan"} if row["step"] == 4 and row["kind"] == "eval" else row for row in lines]
    copy.metrics.write_text("".join(json.dumps(row) + "\n" for row in not_numbers))
    assert origins.best_step(copy, str(copy.path)) == 6, "a loss that is NaN, logged as text, is not the lowest"


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"data": {"tokenizer": "bytes"}}, "its tokenizer differs (chars, 9 entries"),
        (
            {"model": {"d_ff": 32}},
            "blocks/mlp/down/weight has shape (1, 64, 16) there and (1, 32, 16) here, blocks/mlp/up/bias has shape (1, 64) there"
            " and (1, 32) here, blocks/mlp/up/weight has shape (1, 16, 64) there and (1, 16, 32) here"
            " (model.d_ff was None and is 32); use the same shapes for this model.",
        ),
        ({"model": {"bias": False}}, "this model has no blocks/attention/out/bias, "),
        ({"train": {"start_step": "5"}}, "it has no checkpoint of train.start_step=5; there are: 4, 6."),
        (
            {"train": {"start_step": "last"}},
            "train.start_step='last' is not a step; give the step of a checkpoint",
        ),
        (
            {"train": {"start_from": None, "start_step": "4"}},
            "train.start_step='4' needs train.start_from, which is None",
        ),
        (
            {"train": {"trainable": "blocks/mpl/*"}},
            "'blocks/mpl/*' matches no parameter of this model; the nearest are bl",
        ),
        ({"train": {"trainable": "head,,"}}, "train.trainable='head,,' has an empty name in it"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name_before_anything_is_written(
    values, trained, tmp_path, capsys, fields, said
):
    ours = started(values, trained)
    command = ["train", runs.write_config(runs.changed(ours, **fields), tmp_path / "fields.py")]
    assert cli.main([*command, f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_refused_and_so_is_the_run_itself(values, trained, tmp_path, capsys):
    for origin, said in ((tmp_path, "is not a run directory: it is"), (tmp_path / "run", "is --workdir itself")):
        ours = started(values, origin)
        command = ["train", runs.write_config(ours, tmp_path / "fields.py"), f"--workdir={tmp_path / 'run'}"]
        assert cli.main(command) == 2 and said in capsys.readouterr().err


def test_an_older_config_of_a_run_has_none_of_these_fields_and_means_the_same(values):
    config = from_dict(values)
    known = config.to_dict()
    older = known | {
        "train": {k: v for k, v in known["train"].items() if k not in ("loss", "trainable", "start_from", "start_step")}
    }
    assert from_dict(older) == config


def test_an_imported_model_is_trained_further(values, trained, tmp_path, capsys):
    """One of Hugging Face's with 29 tokens, of which the tokenizer of a run takes nine."""
    imported = tmp_path / "imported"
    importing.import_folder(str(ROOT / "tests/golden/hf/gpt2_plain"), str(imported), str(trained / "tokenizer"))
    ours = started(values, imported) | {"model": json.loads((imported / "config.json").read_text())["model"]}
    ours = runs.changed(ours, train=dict(steps=1), mesh=dict(replica=2, fsdp=4))
    other = runs.changed(ours, data=dict(tokenizer="bytes"))
    command = ["train", runs.write_config(other, tmp_path / "other.py"), f"--workdir={tmp_path / 'run'}"]
    assert cli.main([*command, "--config.model.vocab_size=None"]) == 2
    mend = f"set data.tokenizer={imported}/tokenizer."
    assert mend in capsys.readouterr().err
    ours = runs.changed(ours, data=dict(tokenizer=f"{imported}/tokenizer"))
    command = ["train", runs.write_config(ours, tmp_path / "ours.py"), f"--workdir={tmp_path / 'run'}"]
    assert cli.main(command) == 0
    theirs, begun, later = params_of(imported, 0), params_of(tmp_path / "run", 0), params_of(tmp_path / "run", 1)
    assert theirs.keys() == begun.keys() == later.keys()
    for name, array in theirs.items():
        assert np.array_equal(array, begun[name]) and not np.array_equal(array, later[name]), name
    assert cli.main(["train", command[1], f"--workdir={imported}"]) == 2
    assert f"a new run starts with its parameters by train.start_from={imported}" in capsys.readouterr().err


def test_an_export_of_a_fine_tune_has_the_generation_settings_of_the_imported_model(values, trained, tmp_path):
    """Of a fine-tune of a fine-tune too, and when the imported run is gone."""
    folder = shutil.copytree(ROOT / "tests/golden/hf/gpt2_plain", tmp_path / "folder")
    generation = {"eos_token_id": 3, "temperature": 0.6, "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    imported = tmp_path / "imported"
    importing.import_folder(str(folder), str(imported), str(trained / "tokenizer"))
    ours = started(values, imported) | {"model": json.loads((imported / "config.json").read_text())["model"]}
    data = dict(tokenizer=f"{imported}/tokenizer")
    ours = runs.changed(ours, train=dict(steps=1), mesh=dict(replica=2, fsdp=4), data=data)
    again = runs.changed(
        ours, train=dict(start_from=str(tmp_path / "first")), data=dict(tokenizer=str(tmp_path / "first" / "tokenizer"))
    )
    for config, name in ((ours, "first"), (again, "second")):
        assert (
            cli.main(["train", runs.write_config(config, tmp_path / f"{name}.py"), f"--workdir={tmp_path / name}"]) == 0
        )
    shutil.rmtree(imported)
    for name in ("first", "second"):
        exporting.export_run(run.read(tmp_path / name), str(tmp_path / f"{name}_out"))
        written = json.loads((tmp_path / f"{name}_out" / "generation_config.json").read_text())
        assert {key: written[key] for key in generation} == generation


@pytest.mark.slow
def test_control_tokens_of_a_chat_start_as_the_mean_of_the_vocabulary_and_all_else_as_it_was(tmp_path, values, capsys):
    (tmp_path / "c.jsonl").write_text("".join(f'{{"prompt": "q{i}", "completion": "a{i}"}}\n' for i in range(60)))
    text = dict(path=values["data"]["path"], tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    base = runs.changed(trained_values(values), model=dict(tied_head=False)) | {"data": text}
    assert cli.main(["train", runs.write_config(base, tmp_path / "base.py"), f"--workdir={tmp_path / 'base'}"]) == 0
    chat = dict(source=f"jsonl:{tmp_path}/c.jsonl", chat="gptjax", packing="best_fit", val_split="document")
    chat |= dict(val_fraction=0.3, tokenizer=str(tmp_path / "base" / "tokenizer"), cache_dir=str(tmp_path / "cache"))
    sft = runs.changed(started(values, tmp_path / "base"), model=dict(tied_head=False)) | {"data": chat}
    assert cli.main(["train", runs.write_config(sft, tmp_path / "sft.py"), f"--workdir={tmp_path / 'sft'}"]) == 0
    said = capsys.readouterr().err
    assert "new symbols, as the mean of its 257: <|system|>, <|user|>, <|assistant|>, <|end|>, <|tool|>" in said
    theirs, ours = params_of(tmp_path / "base", 6), params_of(tmp_path / "sft", 0)
    for name in ("params['token_embedding']", "params['head']"):
        table_VD, grown_VD = theirs.pop(name), ours.pop(name)
        assert np.array_equal(grown_VD[:257], table_VD[:257])
        mean_VD = np.tile(table_VD[:257].mean(axis=0), (5, 1))
        np.testing.assert_allclose(grown_VD[257:262], mean_VD, rtol=1e-5, atol=1e-7)
    assert theirs.keys() == ours.keys() and all(np.array_equal(array, ours[name]) for name, array in theirs.items())


@pytest.mark.slow
def test_an_adapter_learns_new_symbols_with_their_rows_or_not_at_all(tmp_path, values, capsys):
    (tmp_path / "c.jsonl").write_text("".join(f'{{"prompt": "q{i}", "completion": "a{i}"}}\n' for i in range(60)))
    text = dict(path=values["data"]["path"], tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    base = trained_values(values) | {"data": text}
    assert cli.main(["train", runs.write_config(base, tmp_path / "base.py"), f"--workdir={tmp_path / 'base'}"]) == 0
    chat = dict(source=f"jsonl:{tmp_path}/c.jsonl", chat="gptjax", packing="best_fit", val_split="document")
    chat |= dict(val_fraction=0.3, tokenizer=str(tmp_path / "base" / "tokenizer"), cache_dir=str(tmp_path / "cache"))
    lora = runs.changed(started(values, tmp_path / "base"), model=dict(adapter="lora")) | {"data": chat}
    assert cli.main(["train", runs.write_config(lora, tmp_path / "lora.py"), f"--workdir={tmp_path / 'lora'}"]) == 2
    assert "in token_embedding start alike and are frozen; set train.trainable='*adapter/*, token_embedding'" in (
        capsys.readouterr().err
    )
    lora["train"] |= dict(trainable="*adapter/*, token_embedding")
    assert cli.main(["train", runs.write_config(lora, tmp_path / "lora.py"), f"--workdir={tmp_path / 'lora'}"]) == 0
    adapted = run.load(tmp_path / "base").with_adapter(tmp_path / "lora")
    assert adapted.tokenizer.special["<|end|>"] == 260
    assert np.array_equal(adapted.logits("ab"), run.load(tmp_path / "lora").logits("ab"))
    assert cli.main(["export", f"--workdir={tmp_path / 'lora'}", "--to=peft", f"--out={tmp_path / 'out'}"]) == 2
    assert "parameters of its own beside its adapter (token_embedding)" in capsys.readouterr().err


def test_a_vocabulary_that_outgrows_its_padding_gets_more_rows_on_any_mesh():
    small = Config(model=SMALL, train=TrainConfig(steps=1), mesh=MeshConfig(tensor=4))
    large = small.replace(model=dict(vocab_size=132))
    program = programs.build(large, meshes.make_mesh(large), "xla")
    params = architectures.split(architectures.make(small.model, jax.random.key(0)))[1]
    table_VD = np.array(params["token_embedding"])
    grown = new_symbols.grown(params, ["token_embedding"], 127, program, large.model)["token_embedding"]
    assert grown.shape == (256, 32) and grown.sharding == program.param_sharding["token_embedding"]
    assert np.array_equal(grown[:127], table_VD[:127])
    np.testing.assert_allclose(grown[127:], np.tile(table_VD[:127].mean(axis=0), (129, 1)), rtol=1e-5, atol=1e-7)


def test_only_symbols_behind_the_same_tokenizer_are_taken():
    plain, chat = tokenizers.from_spec("bytes"), tokenizers.from_spec("bytes").with_special(("<|b|>", "<|a|>"))
    assert new_symbols.added(plain, chat) == ("<|b|>", "<|a|>")
    assert new_symbols.added(plain.with_special(("<|b|>",)), chat) == ("<|a|>",)
    assert new_symbols.added(plain.with_special(("<|a|>",)), chat) is None
    assert new_symbols.added(chat, plain) is None
