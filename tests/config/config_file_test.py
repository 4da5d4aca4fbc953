"""Config files and overrides are read as documented."""

import dataclasses
import json
import re
import sys

import pytest
from places import ROOT

from gptjax.config.config_file import from_dict, load_config
from gptjax.config.fields import Config
from gptjax.errors import UserError


def shipped(name, *overrides):
    return load_config(str(ROOT / "configs" / f"{name}.py"), overrides)


@pytest.mark.parametrize(
    "override,section,field,value",
    [
        ("optim.peak_lr=3e-4", "optim", "peak_lr", 3e-4),
        ("optim.peak_lr=1", "optim", "peak_lr", 1.0),
        ("train.steps=1e4", "train", "steps", 10_000),
        ("train.z_loss=none", "train", "z_loss", None),
        ("model.band_width=None", "model", "band_width", None),
        ("train.tensorboard=FALSE", "train", "tensorboard", False),
        ("model.qk_norm=true", "model", "qk_norm", True),
        ("train.profile_steps=(10, 12)", "train", "profile_steps", (10, 12)),
        ("train.profile_steps=10,12", "train", "profile_steps", (10, 12)),
        ("train.profile_steps=[10,12]", "train", "profile_steps", (10, 12)),
        ("checkpoint.keep_steps=[10,20]", "checkpoint", "keep_steps", (10, 20)),
        ("data.tfds_name=wikipedia/20230601.en:1.0.0", "data", "tfds_name", "wikipedia/20230601.en:1.0.0"),
        ("data.path='a b.txt'", "data", "path", "a b.txt"),
        ("data.path=2024", "data", "path", "2024"),
        ("data.path=a=b", "data", "path", "a=b"),
        ("mesh.fsdp=-1", "mesh", "fsdp", -1),
    ],
)
def test_an_override_is_parsed_by_the_type_of_its_field(override, section, field, value):
    read = getattr(getattr(shipped("gpt3_125m" if section == "mesh" else "quickstart", override), section), field)
    assert read == value and type(read) is type(value)


def test_a_later_override_wins_and_the_rest_of_the_file_stands():
    config = shipped("quickstart", "train.steps=10", "train.steps=20")
    assert config.train.steps == 20
    assert dataclasses.replace(config.train, steps=600) == shipped("quickstart").train


@pytest.mark.parametrize(
    "override,message",
    [
        ("optim.peek_lr=1", "did you mean 'peak_lr'"),
        ("optimizer.peak_lr=1", "did you mean 'optim'"),
        ("optim.peak_lr=fast", "is a str; expected float"),
        ("train.steps=1.5", "is a float; expected int or None"),
        ("train.steps=true", "expected int or None"),
        ("train.tensorboard=1", "expected bool"),
        ("train.profile_steps=(1,2,3)", "expected tuple"),
        ("train.steps", "expected --config.train.FIELD=VALUE"),
        ("train=3", "expected --config.train.FIELD=VALUE"),
        ("train.batch_size=0", "use at least 1"),
        ("train.microbatches=5", "does not divide train.batch_size=12"),
        ("train.log_noise_scale=true", "compares a step's microbatches, but train.microbatches=1; use at least 2"),
        ("checkpoint.keep_steps=(10,610)", "checkpoint.keep_steps has 610, but the run's steps are 1 to 600"),
        ("checkpoint.keep_steps=(0,)", "checkpoint.keep_steps has 0, but"),
        ("train.steps_per_call=10 checkpoint.keep_steps=(15,)", "not a multiple of train.steps_per_call=10; use 20"),
    ],
)
def test_a_wrong_override_is_refused_with_what_to_do(override, message):
    with pytest.raises(UserError, match=re.escape(message)):
        shipped("quickstart", *override.split())


@pytest.mark.parametrize(
    "text,message",
    [
        ("x = 1", "defines no get_config()"),
        ("def get_config():\n    return 3", "expected an ml_collections.ConfigDict"),
        ("def get_config():\n    return {'trian': {'steps': 1}}", "did you mean 'train'"),
        ("def get_config():\n    return {'train': 1}", "is not a mapping"),
        ("def get_config():\n    return {'train': {'stesp': 1}}", "did you mean 'steps'"),
        ("def get_config():\n    return {'train': {'steps': '1'}}", "train.steps='1' is a str"),
        ("def get_config():\n    return {}", "the run has no length"),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_wrong_config_file_is_refused_with_what_to_do(tmp_path, text, message):
    file = tmp_path / "wrong.py"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(str(file))


def test_a_missing_config_file_names_its_nearest_sibling():
    with pytest.raises(UserError, match="did you mean 'gpt2_small.py'"):
        load_config(str(ROOT / "configs" / "gpt2_smal.py"))


MIXTURE = {"mixture": {"web": "a", "code": "text:b"}, "weights": {"web": 3, "code": 1}}


def with_data(**fields) -> Config:
    return from_dict({"train": {"steps": 1}, "data": MIXTURE | fields})


def test_a_config_survives_a_round_trip_through_its_dict():
    config = shipped("gpt3_125m", "train.profile_steps=(10, 12)")
    assert from_dict(config.to_dict()) == config
    config = with_data(weight_stages=[[1e9, {"web": 1, "code": 2}], (2_000_000_000, {"web": 0, "code": 1.0})])
    assert from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.data.weights == {"web": 3.0, "code": 1.0} and config.data.weight_stages[1][1]["web"] == 0.0


def test_a_mixture_is_given_on_the_command_line():
    given = [f"data.{name}={value}" for name, value in MIXTURE.items()]
    stages = "data.weight_stages=[(1000, {'web': 1, 'code': 0})]"
    config = shipped("gpt2_small", "data.source=corpus", "data.tfds_name=none", *given, stages)
    assert config.data.mixture == MIXTURE["mixture"] and config.data.weights == MIXTURE["weights"]
    assert config.data.weight_stages == ((1000, {"web": 1.0, "code": 0.0}),)


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"mixture": None}, "data.weights belong to data.mixture; set that too"),
        ({"mixture": {}}, "data.mixture has no source; give {name: folder or 'KIND:PATH'}, or None"),
        ({"mixture": {"all": "a"}, "weights": None}, "data.mixture: evaluations use the name 'all' for the whole text"),
        ({"path": "c"}, "data.mixture and data.source='corpus', data.path='c' are both set"),
        ({"source": "tfds", "tfds_name": "lm1b"}, "data.mixture and data.source='tfds'"),
        ({"weights": {"web": 1, "kode": 1}}, "data.weights has 'kode'; did you mean 'code'?"),
        ({"weights": {"web": 1}}, "data.weights has none for 'code'"),
        ({"weights": {"web": 1, "code": "much"}}, "data.weights['code']='much' is a str; expected"),
        ({"weights": {"web": 1, "code": float("nan")}}, "data.weights['code']=nan must be finite"),
        ({"weights": [1, 2]}, "data.weights=[1, 2] is a list; expected"),
        ({"weights": {"web": 0, "code": 1}}, "data.weights gives 'web' 0 in all stages"),
        ({"weight_stages": [(9, {"web": 1})]}, "data.weights has none for 'code'"),
        ({"weight_stages": [(0, MIXTURE["weights"])]}, "data.weight_stages start at [0] tokens; expected increasing"),
        ({"weight_stages": [(9, MIXTURE["weights"])] * 2}, "data.weight_stages start at [9, 9] tokens"),
        ({"weight_stages": [9]}, "data.weight_stages[0]=9 is an int; expected"),
        ({"prefetch_workers": -1}, "data.prefetch_workers=-1"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_when_the_config_is_made(fields, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        with_data(**fields)
    assert "\n" not in str(error.value)


# Every field has a reader


# ---- what a user's file does wrong


WRONG_FILES = {
    "def get_config():\n    return undefined": "NameError: name 'undefined' is not defined (wrong.py, line 2: return undefined)",
    "x = 1\ndef get_config(:\n    return 5": "SyntaxError: invalid syntax (wrong.py, line 2: def get_config(:)",
    "import nonexistent_module": "ModuleNotFoundError: No module named 'nonexistent_module' (wrong.py, line 1: import",
    "\n\nfrom os import nothing": "ImportError: cannot import name 'nothing' from 'os' ",
    "def get_config():\n    return {}['depth']": "KeyError: 'depth' (wrong.py, line 2: return {}['depth'])",
    "def get_config():\n    raise ValueError": "ValueError (wrong.py, line 2: raise ValueError)",
    "import json\ndef get_config():\n    return json.loads('')": "(wrong.py, line 3: return json.loads(''))",
    "import imported_config\ndef get_config():\n    return imported_config.make()": "(wrong.py, line 3: return"
    " imported_config.make(); imported_config.py, line 2: return depth)",
    "import imported_wrong": "(wrong.py, line 1: import imported_wrong; imported_wrong.py, line 2: (",
}


@pytest.mark.parametrize("code", WRONG_FILES)
def test_what_a_config_file_does_wrong_is_said_with_its_line(code, tmp_path, monkeypatch):
    (tmp_path / "wrong.py").write_text(code)
    (tmp_path / "imported_config.py").write_text("def make():\n    return depth\n")
    (tmp_path / "imported_wrong.py").write_text("x = 1\n(\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "imported_config", raising=False)
    for path in ("wrong.py", str(tmp_path / "wrong.py")):
        with pytest.raises(UserError) as caught:
            load_config(path)
        assert str(caught.value).startswith(f"--config={path} could not be run: ")
        assert WRONG_FILES[code] in str(caught.value) and "\n" not in str(caught.value)


def test_a_study_file_says_its_line_too(tmp_path):
    from gptjax.study.declare import declaration

    (tmp_path / "study.py").write_text("def get_study():\n    return Study(base=3)\n")
    with pytest.raises(UserError, match=r"'Study' is not defined \(.*study.py, line 2: return Study\(base=3\)\)"):
        declaration.load(str(tmp_path / "study.py"))
