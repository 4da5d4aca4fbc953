import dataclasses
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs
from places import ROOT

import gptjax
from gptjax.config.fields import DataConfig
from gptjax.errors import Damaged, UserError
from gptjax.run import run as run_module
from gptjax.rundir import run_directory

GOLDEN = ROOT / "tests" / "golden" / "checkpoints"
SCHEMAS = sorted(path.name for path in GOLDEN.iterdir())
TEXT = "the cat sat on the mat and the dog ran to the den. "


@pytest.fixture
def copy(tmp_path):
    """A run directory with two steps, 6 and, a copy of it, 5; nothing else of its run is here."""
    place = shutil.copytree(GOLDEN / "schema1", tmp_path / "run")
    runs.copy_step(place, 6, 5)
    return place


@pytest.fixture(scope="module")
def loaded():
    return gptjax.load(GOLDEN / "schema2")


@pytest.mark.parametrize("item", ["params", "ema"])
@pytest.mark.parametrize("schema", SCHEMAS)
def test_golden_checkpoints_of_each_schema_keep_loading_and_give_their_logits(schema, item):
    run = gptjax.load(GOLDEN / schema, ema=item == "ema")
    golden = np.load(GOLDEN / schema / "logits.npz")
    np.testing.assert_allclose(run.logits(golden["tokens"]), golden[item], atol=2e-6)
    assert run.step == 6 and run.steps == [6]


def test_the_newest_schema_has_a_golden_checkpoint():
    from gptjax.checkpoints import validity

    assert f"schema{validity.SCHEMA}" in SCHEMAS


@pytest.mark.parametrize(
    "mesh",
    [
        {"fsdp": 2, "tensor": 2, "stage": 2},
        "sequence=4,tensor=2",
        pytest.param("fsdp=8", marks=pytest.mark.slow),
        pytest.param("replica=-1", marks=pytest.mark.slow),
    ],
)
def test_on_any_mesh_a_run_is_as_on_one_device(loaded, mesh):
    other = gptjax.load(GOLDEN / "schema2", mesh=mesh)
    assert other.mesh.size == 8
    places = jax.tree.map(lambda leaf, place: leaf.sharding == place, other.params, other.program.param_sharding)
    assert jax.tree.all(places)
    np.testing.assert_allclose(other.logits(TEXT[:16]), loaded.logits(TEXT[:16]), atol=1e-6)
    maps = other.attention(TEXT[:16]), loaded.attention(TEXT[:16])
    np.testing.assert_allclose(*(a.weight_NHLM for a in maps), atol=1e-6)
    if mesh == "sequence=4,tensor=2":
        np.testing.assert_allclose(other.loss(TEXT[:16]).loss_L, loaded.loss(TEXT[:16]).loss_L, atol=1e-6)


def test_bfloat16_is_what_is_stored_rounded_once(loaded):
    other = gptjax.load(GOLDEN / "schema2", dtype="bfloat16")
    assert other.model_config.dtype == "bfloat16"
    rounded = jax.tree.map(lambda a: a.astype("bfloat16"), loaded.params)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and (a == b).all(), other.params, rounded))


def test_at_gives_another_step_as_load_does(copy):
    run = gptjax.load(copy, dtype="bfloat16", ema=True)
    other = run.at(5)
    assert (run.step, other.step, run.steps) == (6, 5, [5, 6])
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), run.params, other.params)), "a copy of it"


def test_a_run_directory_suffices_copied_read_only_from_elsewhere_without_network_or_orbax(copy, tmp_path):
    for path in [copy, *copy.rglob("*")]:
        path.chmod(stat.S_IRUSR | (stat.S_IXUSR if path.is_dir() else 0))
    code = (
        "import sys, gptjax; run = gptjax.load('run', mesh='fsdp=2');"
        "print(round(float(run.loss('the cat sat')), 4), any(name.startswith('orbax') for name in sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(gptjax.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    for path in [copy, *copy.rglob("*")]:
        path.chmod(stat.S_IRWXU)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    expected = round(float(gptjax.load(GOLDEN / "schema1").loss("the cat sat")), 4)
    assert done.stdout.split() == [str(expected), "False"]


# ---- damage


def flip(file) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.fixture
def damaged(tmp_path):
    """Step 7 is step 6 with one bit of its parameters flipped; both of schema 2."""
    from gptjax.checkpoints import validity

    place = shutil.copytree(GOLDEN / "schema2", tmp_path / "run")
    steps = place / "checkpoints"
    runs.copy_step(place, 6, 7)
    flip(largest(steps / "7" / "params" / "ocdbt.process_0"))
    assert validity.steps(steps) == [6, 7], "names and sizes do not tell"
    return place


def test_a_flipped_bit_is_seen_said_and_the_step_before_is_taken(damaged, capfd):
    assert gptjax.load(damaged).step == 6
    said = capfd.readouterr().err
    assert f"step 7 of {damaged} is left out: checkpoint {damaged}/checkpoints/7 is damaged" in said
    assert said.count("\n") == 1 and sorted(os.listdir(damaged / "checkpoints")) == ["6", "7"], "readers rename nothing"


def test_a_damaged_step_asked_for_is_refused(damaged):
    with pytest.raises(Damaged, match="checkpoints/7 is damaged: .*; see gptjax verify"):
        gptjax.load(damaged, step=7)


def test_a_step_without_its_manifest_is_none(damaged, capfd):
    (damaged / "checkpoints" / "7" / "manifest.json").unlink()
    assert gptjax.load(damaged).step == 6
    assert "step 7" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"no checkpoint of step 7 that counts: it is incomplete .*there are: 6"):
        gptjax.load(damaged, step=7)


def test_a_checksum_that_differs_is_seen_where_the_file_can_be_read(damaged):
    """As if memory had erred while it was written: TensorStore reads it without complaint."""
    import json

    from gptjax.checkpoints import validity

    folder = damaged / "checkpoints" / "6"
    manifest = json.loads((folder / "manifest.json").read_text())
    piece = manifest["arrays"]["params/token_embedding"]["pieces"][0]
    piece["checksum"] = f"{int(piece['checksum'], 16) ^ 1:016x}"
    del manifest["sha256"]
    manifest["sha256"] = validity.digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Damaged, match="params/token_embedding has another checksum"):
        gptjax.load(damaged, step=6, mesh="fsdp=4,tensor=2")


# ---- what cannot be


@pytest.mark.parametrize(
    "given,message",
    [
        ({"path": "nowhere"}, "^path=.*nowhere: no such directory"),
        ({"path": GOLDEN}, "is not a run directory: it has no config.json"),
        ({"step": 3}, "has no checkpoint of step 3; there are: 6"),
        ({"dtype": "float16"}, "dtype='float16' is not known.*expected one of: bfloat16, float32"),
        ({"mesh": "fsdp"}, "^mesh=fsdp: expected axes and sizes, as in mesh=fsdp=64,tensor=8"),
        ({"mesh": "fdsp=2"}, "^mesh: the axis='fdsp' is not known; did you mean 'fsdp'"),
        ({"mesh": "fsdp=2,fsdp=4"}, "gives fsdp twice"),
        ({"mesh": {"fsdp": 0}}, "fsdp=0 is not a size"),
        ({"mesh": {"fsdp": -1, "tensor": -1}}, "is not a size"),
        ({"mesh": 4}, "mesh=4 is not a mesh"),
        ({"mesh": "fsdp=16"}, "mesh fsdp=16 is 16 devices, but there are 8"),
        ({"mesh": "tensor=8"}, "model.n_heads=2 does not divide over mesh.tensor=8"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(given, message):
    with pytest.raises(UserError, match=message) as caught:
        gptjax.load(**{"path": GOLDEN / "schema1", **given})
    assert "\n" not in str(caught.value)


def test_a_run_without_checkpoints_or_average_says_so(copy):
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet; train it further"):
        gptjax.load(copy)
    directory = run_directory.open_run(copy)
    directory.write_config(directory.config().replace(optim={"ema_decay": None}))
    with pytest.raises(UserError, match="kept no moving average"):
        gptjax.load(copy, ema=True)


@pytest.mark.parametrize(
    "tokens,message",
    [
        ([[1, 2], [3]], "rows of one length"),
        ([], "are no token ids"),
        ([0.5], "are no token ids"),
        ([14], "token id 14 is outside the vocabulary; expected 0 to 13"),
        ([0] * 17, "17 tokens are more than the context of 16"),
    ],
)
def test_what_is_no_tokens_is_refused(loaded, tokens, message):
    with pytest.raises(UserError, match=message):
        loaded.logits(tokens)


# ---- what is read of it


def test_metrics_are_a_data_frame_with_numbers_where_json_has_words(copy):
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 7, "loss": "nan"}\n{"kind": "tra')
    frame = gptjax.load(copy).metrics
    train = frame[frame.kind == "train"]
    assert train.step.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert np.isnan(train.loss.iloc[-1]) and train.loss.iloc[:-1].astype(float).notna().all()


def test_a_run_says_what_it_is(loaded):
    shown = repr(loaded)
    assert len(shown.splitlines()) == 5 and "step:       6 (of 6)" in shown and "chars, 14 entries" in shown
    assert loaded._repr_html_().count("<tr>") == 5


def test_a_text_longer_than_the_context_is_read_in_windows(loaded):
    ids = loaded.tokens(TEXT)
    loss_L = loaded.loss(TEXT).loss_L
    expected = np.full(len(ids), np.nan)
    for t in range(1, len(ids)):
        start = 0 if t <= 16 else min((t - 17) // 8 * 8 + 8, len(ids) - 17)  # 17 tokens from every eighth; the last 17
        before = ids[start:t]
        logit_V = loaded.logits(before)[-1].astype(np.float64)
        expected[t] = np.log(np.exp(logit_V).sum()) - logit_V[ids[t]]
    np.testing.assert_allclose(loss_L, expected, atol=1e-5)
    assert np.isnan(loss_L[0]) and loaded.tokenizer.eot_id is None


@pytest.mark.parametrize("length", [1, 2, 17, 18, 25, 26, 100])
def test_windows_tell_each_token_once_with_half_a_context_before_it(length):
    told = []
    for start, stop, fresh in run_module._windows(length, 16):
        assert stop - start <= 17 and start >= 0 and (start == 0 or fresh - start > 8)
        told += range(fresh, stop)
    assert told == list(range(1, length))


def test_a_model_that_fills_in_sees_the_whole_text_and_has_no_loss(loaded):
    config = dataclasses.replace(loaded.config, data=DataConfig(objective="masked_lm"))
    run = dataclasses.replace(loaded, config=config)
    first = run.attention("the cat").weight_NHLM[:, :, 0]
    assert (first > 0).all() and np.allclose(first.sum(-1), 1, atol=1e-6)
    with pytest.raises(UserError, match="fills in what is missing"):
        run.loss("the cat")


# ---- what is typed wrongly


TYPED_WRONGLY = [
    (lambda run: gptjax.load(GOLDEN / "schema2", stp=3), r"^gptjax.load has no argument 'stp'; did you mean 'step'\?"),
    (lambda run: gptjax.load(), "^gptjax.load: missing a required argument: 'path'; it takes: path, step, dtype"),
    (lambda run: gptjax.load(GOLDEN, 6, "float32"), "^gptjax.load: too many positional arguments; it takes: path"),
    (lambda run: gptjax.load(5), "^path=5 is an int; expected str or PathLike"),
    (lambda run: gptjax.load(GOLDEN, step="last"), "^step=last: expected a number or best"),
    (lambda run: gptjax.load(GOLDEN, step=True), "^step=True is a bool; expected int or str or None"),
    (
        lambda run: gptjax.load(GOLDEN, dtype=np.float32),
        "^dtype=<class 'numpy.float32'> is a type; expected str or None",
    ),
    (lambda run: gptjax.load(GOLDEN, ema="yes"), "^ema='yes' is a str; expected bool"),
    (
        lambda run: run.generate("a", max_token=5),
        r"^run.generate has no argument 'max_token'; did you mean 'max_tokens'\?",
    ),
    (
        lambda run: run.generate(prompt="a"),
        r"no argument 'prompt'; did you mean 'prompts'\?; it takes: prompts, callback",
    ),
    (lambda run: run.generate("a", temperatur=1), "did you mean 'temperature'"),
    (lambda run: run.generate("a", max_tokens="5"), "^max_tokens='5' is a str; expected int"),
    (lambda run: run.generate("a", max_tokens=0), "^max_tokens=0 is too small"),
    (lambda run: run.generate("a", top_k=1.5), "^top_k=1.5 is a float; expected int or None"),
    (lambda run: run.generate("a", temperature="hot"), "^temperature='hot' is a str; expected float or None"),
    (lambda run: run.generate("a", temperature=-1), "^temperature=-1.0 is negative"),
    (lambda run: run.generate("a", stop=5), "^stop=5 is an int; expected tuple"),
    (lambda run: run.generate("a", stop=["b", 5]), r"^stop\[1\]=5 is an int; expected str"),
    (lambda run: run.generate("a", seed="x"), "^seed='x' is a str; expected int or tuple"),
    (lambda run: run.generate("a", logprobs="x"), "^logprobs='x' is a str; expected bool"),
    (lambda run: run.generate("a", callback=5), "^callback=5 is an int; expected Callable or None"),
    (lambda run: run.generate(5), "^prompts=5 is no prompt; expected a text, token ids"),
    (lambda run: run.generate({"a": 1}), "^prompts={'a': 1} is no prompt"),
    (lambda run: run.generate(b"ab"), "^prompts=b'ab' is no prompt"),
    (lambda run: run.evaluate(batchsize=5), r"^run.evaluate has no argument 'batchsize'; did you mean 'batch_size'\?"),
    (lambda run: run.evaluate(text="corpus"), "did you mean 'texts'"),
    (lambda run: run.evaluate(5), "^texts=5 is an int; expected str or list"),
    (lambda run: run.loss(""), "^run.loss: the text has 0 tokens, and none to predict; give a longer text.$"),
    (lambda run: run.evaluate([5]), "^texts: 5 does not name a text; expected KIND:PATH"),
    (lambda run: run.evaluate("text:x", max_tokens=-5), "^max_tokens=-5 is too small; use at least 1"),
    (lambda run: run.evaluate("text:x", stride="x"), "^stride='x' is a str; expected int or None"),
    (
        lambda run: run.evaluate("text:x", protocol="wikitxt2"),
        "protocol='wikitxt2' is not known; did you mean 'wikitext2'",
    ),
    (
        lambda run: run.evaluate("text:x", protocol="lambada"),
        "protocol='lambada' is not known.*expected one of: wikitext2",
    ),
    (lambda run: run.evaluate(text_field="body"), "^text_field says how texts are read; give texts too"),
    (lambda run: run.loss(txt="a"), r"^run.loss has no argument 'txt'; did you mean 'text'\?; it takes: text"),
    (lambda run: run.loss([1, 2]), r"^text=\[1, 2\] is a list; expected str"),
    (lambda run: run.tokens(5), "^text=5 is an int; expected str"),
    (lambda run: run.logits(text="a"), "^run.logits has no argument 'text'.*; it takes: tokens"),
    (lambda run: run.attention(), "^run.attention: missing a required argument: 'text'"),
    (lambda run: run.residuals(tokens="a"), "^run.residuals has no argument 'tokens'"),
    (lambda run: run.logit_lens(tokens="a"), "^run.logit_lens has no argument 'tokens'"),
    (lambda run: run.at("x"), "^step='x' is a str; expected int"),
]


@pytest.mark.parametrize("call,message", TYPED_WRONGLY, ids=[message for _, message in TYPED_WRONGLY])
def test_an_argument_that_cannot_be_is_said_in_one_line(loaded, call, message):
    with pytest.raises(UserError, match=message) as caught:
        call(loaded)
    assert "\n" not in str(caught.value)


def test_every_function_of_the_door_refuses_a_keyword_that_it_does_not_take(loaded):
    methods = [getattr(loaded, name) for name, kind in vars(gptjax.Run).items() if name[0] != "_" and callable(kind)]
    assert len(methods) > 8
    for function in (gptjax.load, gptjax.compare, *methods):
        with pytest.raises(UserError, match=f"{function.__name__} has no argument 'nonsense'"):
            function(nonsense=1)


def test_numbers_of_numpy_and_whole_floats_are_taken_for_what_they_are(loaded):
    settings = dict(max_tokens=np.int64(3), temperature=np.float32(0.5), seed=np.arange(2), num_return_sequences=2.0)
    plain = loaded.generate("the", max_tokens=3, temperature=0.5, seed=(0, 1), num_return_sequences=2)
    assert [str(one) for one in loaded.generate("the", **settings)] == [str(one) for one in plain]
    assert gptjax.load(GOLDEN / "schema2", np.int64(6)).step == 6


def test_a_message_that_names_a_command_keeps_its_flags():
    from gptjax.run.arguments import _without_dashes

    assert (
        _without_dashes("--step=3 of --data is not --stepping", ["step", "texts"])
        == "step=3 of texts is not --stepping"
    )
    assert _without_dashes("see gptjax eval --step=3", ["step"]) == "see gptjax eval --step=3"


def test_what_the_door_returns_is_shown_in_a_few_lines(loaded):
    [completion] = loaded.generate("the cat sat " * 100, max_tokens=300)
    shown = [completion, loaded.attention("the cat sat on t"), loaded.loss(TEXT), loaded.program, loaded.tokenizer]
    for one in shown:
        assert len(repr(one)) < 300 and "\n" not in repr(one) and " object at 0x" not in repr(one), repr(one)


def test_attention_weights_say_their_axes_and_are_taken_for_an_array(loaded):
    maps = loaded.attention("the cat")
    assert repr(maps).startswith(
        "AttentionMaps(float32 [2 layers, 2 heads, 7 queries, 7 keys], tokens: 't' 'h' 'e' ' ' 'c'"
    )
    assert gptjax.Run.attention.__doc__.startswith("Attention weights [layers, heads, query, key]")
    assert maps.shape == (2, 2, 7, 7) and maps.dtype == np.float32 and len(maps) == 2
    np.testing.assert_allclose(np.sum(maps, axis=-1), 1, rtol=1e-5)
    assert np.array_equal(maps[1, 0], np.asarray(maps)[1, 0]) and np.asarray(maps, np.float64).dtype == np.float64
    assert np.asarray(maps) is maps.weight_NHLM and np.array(maps) is not maps.weight_NHLM


def test_names_of_the_door_are_completed_and_misspelled_ones_have_a_nearest():
    assert {"load", "Run"} <= set(dir(gptjax))
    with pytest.raises(AttributeError) as caught:
        gptjax.laod  # noqa: B018
    assert caught.value.name == "laod" and caught.value.obj is gptjax, "of which Python makes its suggestion"


# ---- metrics


ROWS = [
    {"kind": "train", "step": 1, "loss": 3.0, "tokens": 8},
    {"kind": "event", "step": 1, "event": "resumed", "processes": 2},
    {"kind": "train", "step": 2, "loss": "nan", "tokens": 16},
    {"kind": "eval", "step": 2, "loss": 2.5, "standard_error": 0.1, "tokens": 5},
    {"kind": "tasks", "step": 2, "arithmetic/acc": 0.5},
]


@pytest.fixture
def logged(copy):
    (copy / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return gptjax.load(copy).metrics


def test_metrics_give_a_clean_frame_of_each_kind_of_row(logged):
    assert list(logged.train.columns) == ["step", "loss", "tokens"] and list(logged.train.index) == [1, 2]
    assert logged.train.tokens.dtype == np.int64 and np.isnan(logged.train.loss[2])
    assert list(logged.eval.columns) == ["step", "loss", "standard_error", "tokens"] and logged.eval.loss[2] == 2.5
    assert logged.events.event[1] == "resumed" and logged.tasks["arithmetic/acc"][2] == 0.5
    assert len(logged) == 5, "the frame itself has all rows"


def test_metrics_are_a_data_frame_all_the_same(logged):
    import pandas

    least = 2.6  # noqa: F841, which pandas reads
    assert isinstance(logged, pandas.DataFrame) and type(logged[logged.kind == "train"]) is pandas.DataFrame
    assert logged.query("loss > @least").loss.tolist() == [3.0]
    assert logged.eval("loss > @least").tolist() == [True, False, False, False, False]
    assert logged.copy().groupby("kind").loss.max()["eval"] == 2.5
    assert logged.eval.query("loss < @least").step.tolist() == [2]


def test_a_run_that_has_logged_nothing_has_empty_frames(copy):
    (copy / "metrics.jsonl").unlink()
    frame = gptjax.load(copy).metrics
    assert [len(rows) for rows in (frame, frame.train, frame.eval, frame.tasks, frame.rollouts, frame.events)] == [
        0
    ] * 6
