"""The file of a recipe, and how it is applied to a conversation."""

import pytest
from places import ROOT

from gptjax.applications import recipe, templates
from gptjax.data.chat import Message, calls, parse_messages
from gptjax.errors import UserError

SHIPPED = sorted((ROOT / "configs" / "recipes").glob("*.toml"))
TEXT = """
system = "You speak {language}."
user = "Say in {language}: {text}"
[values]
language = "French"
[[examples]]
text = "Yes"
answer = "Oui"
[settings]
temperature = 0.0
"""


def written(tmp_path, text: str) -> str:
    file = tmp_path / "own.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_recipe_is_read_and_says_what_it_is_for_and_how_it_is_run(file):
    one = recipe.read(str(file))
    assert one.description.endswith(".") and f"--recipe=configs/recipes/{file.name}" in file.read_text()
    if one.is_chat:
        messages, _ = recipe.apply(one, (Message("user", "a text"),), {recipe.SOURCES: "s"} if one.retrieval else {})
        assert (
            parse_messages(messages, "it") == messages
            and messages[-1].role == "user"
            and "a text" in messages[-1].content
        )


def test_a_recipe_applied_is_its_system_message_its_examples_and_every_user_s_message_in_its_template(tmp_path):
    one = recipe.read(written(tmp_path, TEXT))
    typed = [("system", "Be brief."), ("user", "No"), ("assistant", "Non"), ("user", "{language} Maybe")]
    messages, settings = recipe.apply(one, [Message(*pair) for pair in typed], {"language": "Dutch"})
    assert [(m.role, m.content) for m in messages] == [
        ("system", "You speak Dutch.\n\nBe brief."),
        ("user", "Say in Dutch: Yes"),
        ("assistant", "Oui"),
        ("user", "Say in Dutch: No"),
        ("assistant", "Non"),
        ("user", "Say in Dutch: {language} Maybe"),
    ]
    assert settings == {"temperature": 0.0}


def test_an_example_with_a_call_shows_the_call_and_its_result(tmp_path):
    text = 'user = "{text}"\ntools = ["calculator"]\n[[examples]]\ntext = "q"\ncall = \'{"name": "c", "arguments": {}}\'\nresult = "r"\nanswer = "a"\n'
    messages, _ = recipe.apply(recipe.read(written(tmp_path, text)), (Message("user", "x"),))
    expected = [
        ("user", "q"),
        ("assistant", calls.written("c", {})),
        ("tool", "r"),
        ("assistant", "a"),
        ("user", "x"),
    ]
    assert [(m.role, m.content) for m in messages] == expected


def test_braces_that_hold_no_name_are_text_and_doubled_ones_are_a_name_in_braces():
    filled = templates.filled('{"a": 1} {} {x} {{x}} {0}', {"x": "{y}"}, "it")
    assert filled == '{"a": 1} {} {y} {x} {0}'
    assert templates.placeholders('{"a": 1} {x} {{y}}') == {"x"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user = ", "is no TOML"),
        ('usr = "{text}"', "has a key 'usr'; did you mean 'user'?"),
        ("user = 3", "user is int; expected a text"),
        ('system = "x"', "has none of them; expected one of user, prompt, infill"),
        ('user = "{text}"\nprompt = "x"', "has user and prompt"),
        ('user = "no place"', "user has no {text}"),
        ('prompt = "x"\nsystem = "s"', "system is for conversations"),
        ('user = "{text}"\nlabels = ["a"]', "expected at least two texts"),
        ('user = "{text}"\ncalibration = "N/A"', "calibration is of labels"),
        ('user = "{text}"\nlabels = ["a", "b"]\ntools = ["calculator"]', "has labels and tools"),
        ('user = "{text}"\n[retrieval]\npassages = 3', "write {sources} into user"),
        ('user = "{text} {sources}"\n[retrieval]\npassages = 0', "passages=0 is too small"),
        ('user = "{text} {sources}"\n[retrieval]\npassage = 3', "did you mean 'passages'"),
        ('[infill]\ngap = ""', "has no gap"),
        ('user = "{text}"\n[settings]\ntemperature = -1.0', "--temperature=-1.0 is negative"),
        ('user = "{text}"\n[settings]\ntemprature = 1.0', "did you mean 'temperature'"),
        ('user = "{text}"\n[settings]\nnum_beams = 2', "has num_beams; a recipe gives one text"),
        ('user = "{text}"\n[[examples]]\ntext = "x"', "example 1 has no answer"),
        ('user = "{text} {to}"\n[[examples]]\ntext = "x"\nanswer = "y"', "example 1 needs a value for {to}"),
        ('user = "{text}"\nlabels = ["a", "b"]\n[[examples]]\ntext = "x"\nanswer = "c"', "is none of the labels"),
        (
            'user = "{text}"\ntools = ["calculator"]\n[[examples]]\ntext = "x"\nanswer = "c"\nresult = "r"\ncall = "f(1)"',
            "example 1: its call is none",
        ),
        ('user = "{text}"\n[values]\nlanguage = 3', "hold texts that are not empty"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_said_with_its_file(tmp_path, text, message):
    file = written(tmp_path, text)
    with pytest.raises(UserError) as error:
        recipe.read(file)
    assert message in str(error.value) and str(error.value).startswith(file)


def test_a_value_of_no_placeholder_and_a_placeholder_without_a_value_are_refused(tmp_path):
    one = recipe.read(written(tmp_path, 'user = "{text} {style}"'))
    with pytest.raises(UserError, match="has no placeholder {stile}; it has: style"):
        recipe.apply(one, (Message("user", "x"),), {"stile": "plain"})
    with pytest.raises(UserError, match="needs a value for {style}; give --var=style=TEXT"):
        recipe.apply(one, (Message("user", "x"),))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        recipe.read(str(tmp_path / "absent.toml"))
