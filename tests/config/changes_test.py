"""What follows from the word beside a config field: at a resume, a branch, in a study, in a compiled step in a file."""

import copy
import dataclasses

import pytest

from gptjax.config import changes
from gptjax.config.fields import Config, TrainConfig
from gptjax.errors import UserError
from gptjax.rundir import resuming
from gptjax.study.running import identity
from gptjax.training import branching, executable

CONFIG = Config(train=TrainConfig(steps=10))
OTHER = "another value"


def changed(key: str, value=OTHER) -> Config:
    """CONFIG with another value of a field, whatever its type: nobody looks at it but for whether it is the same."""
    section, _, name = key.partition(".")
    config = copy.copy(CONFIG)
    object.__setattr__(config, section, dataclasses.replace(getattr(CONFIG, section), **{name: value}))
    return config


@pytest.mark.parametrize("key", changes.words())
def test_what_a_word_says_is_what_happens(key):
    word, config = changes.word(key), changed(key)
    assert accepts(resuming.check_resume, CONFIG, config) == word.resume
    resuming.check_resume(CONFIG, config, allowed=(key,))
    resuming.check_resume(CONFIG, config, allowed=(key.partition(".")[0],))
    assert branching._may_differ(key, *changes.differing(CONFIG, config)[key]) == word.branch
    assert (identity.counted(config) != identity.counted(CONFIG)) == word.study
    if key.partition(".")[0] in executable.SECTIONS:
        is_another = executable.config_hash(config) != executable.config_hash(CONFIG)
        assert is_another == (word.program or key in executable.SHAPES)


def accepts(check, *args) -> bool:
    try:
        check(*args)
    except UserError:
        return False
    return True


@pytest.mark.parametrize(
    "word, keys",
    {
        "schedule": ["train.steps", "train.batch_size", "optim.peak_lr", "optim.decay_tokens", "optim.schedule"],
        "place": ["data.path", "data.mixture", "data.tfds_dir", "data.tokenizer_path"],
        "rounding": ["mesh.tensor", "model.remat", "model.attention", "eval.batch_size"],
        "measurement": ["train.log_activations", "train.log_noise_scale"],
        "recovery": ["train.max_skips", "train.max_rollbacks"],
        "result": ["eval.max_tokens", "eval.tasks", "checkpoint.keep_steps"],
        "nothing": ["train.log_every", "data.cache_dir", "checkpoint.keep", "eval.every_steps"],
        "training": ["model.d_model", "data.seed", "optim.skip", "train.seed", "train.microbatches", "data.packing"],
    }.items(),
)
def test_fields_have_the_word_of_their_kind(word, keys):
    assert {changes.words()[key] for key in keys} == {word}


@pytest.mark.parametrize(
    "what, words",
    {
        "resume": {"rounding", "measurement", "recovery", "result", "nothing"},
        "branch": {"rounding", "measurement", "recovery", "result", "nothing", "schedule", "place"},
        "study": {"training", "schedule", "measurement", "recovery", "result"},
        "program": {"training", "rounding", "measurement"},
    }.items(),
)
def test_what_a_change_does_hangs_on_its_word_alone(what, words):
    assert {name for name, word in changes.WORDS.items() if getattr(word, what)} == words


def test_a_mixture_may_lie_elsewhere_and_its_names_in_their_order_count():
    here, there = ({"a": f"text:{place}/a", "b": f"text:{place}/b"} for place in ("/here", "/there"))
    assert branching._may_differ("data.mixture", here, there)
    assert not branching._may_differ("data.mixture", here, dict(reversed(there.items())))
    counted = [identity.counted(changed("data.mixture", mixture))["data.mixture"] for mixture in (here, there)]
    assert counted == [["a", "b"]] * 2


def test_a_refusal_names_every_field_and_how_to_allow_it():
    both = copy.copy(changed("optim.beta2"))
    object.__setattr__(both, "model", changed("model.mlp").model)
    with pytest.raises(UserError, match=r"--allow_change=model.mlp,optim.beta2\.$"):
        resuming.check_resume(CONFIG, both)
