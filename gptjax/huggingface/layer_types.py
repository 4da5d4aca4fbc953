"""What a config.json says of one layer and not of another, layer by layer, as patterns of ModelConfig, and back.

transformers writes a name or a number for each layer; ours has a letter for each layer of a period. Of the same layers the
shortest period is taken, since a whole period is compiled.
"""

import itertools

from gptjax.config.fields import ModelConfig
from gptjax.huggingface.base import COUNT, FLAG, Field, Kind

NAMES = {"full_attention": "L", "sliding_attention": "S"}  # theirs -> the letters of model.window_pattern
NAME_LIST = Kind("a list of names", lambda value: type(value) is list and all(type(each) is str for each in value))
NUMBER_LIST = Kind("a list of 0 and 1", lambda value: type(value) is list and all(each in (0, 1) for each in value))
LENGTH = Kind("a whole number of at least 0", lambda value: type(value) is int and value >= 0)

SLIDING = (  # of families whose layers may differ
    Field("use_sliding_window", None, FLAG, False),
    Field("sliding_window", None, COUNT, None),
    Field("layer_types", None, NAME_LIST, None),
)


def windows_in(filled: dict, letters: str) -> dict:
    """Fields of ModelConfig. letters: L or S of each layer where the file has no layer_types."""
    if filled["layer_types"]:
        letters = "".join(NAMES[name] for name in filled["layer_types"])
    if "S" not in letters:
        return {}
    return {"band_width": filled["sliding_window"], "window_pattern": shortest_period(letters)}


def conflicts(filled: dict) -> list[tuple[bool, str]]:
    """(whether it stands, what ours has no equal for)."""
    names, layers = filled["layer_types"] or [], filled["num_hidden_layers"]
    unknown = sorted(set(names) - NAMES.keys())
    window = filled["sliding_window"] if filled["use_sliding_window"] else None
    return [
        (bool(unknown), f"it has layers of other kinds (layer_types: {', '.join(unknown)})"),
        (bool(names) and len(names) != layers, f"layer_types names {len(names)} layers of {layers}"),
        (
            "sliding_attention" in names and window is None,
            "layer_types has sliding_attention, but use_sliding_window or sliding_window is not set",
        ),
    ]


def fields_of_windows(model: ModelConfig) -> dict:
    """Of config.json."""
    letters = window_letters(model)
    name_of = {letter: name for name, letter in NAMES.items()}
    sliding = {"max_window_layers": len(letters) - len(letters.lstrip("L"))} if "S" in letters else {}
    return sliding | {
        "use_sliding_window": "S" in letters,
        "sliding_window": model.band_width if "S" in letters else None,
        "layer_types": [name_of[letter] for letter in letters],
    }


def window_letters(model: ModelConfig) -> str:
    """L or S of each layer."""
    pattern = "L" if model.band_width is None else model.window_pattern
    return of_layers(pattern, model.n_layers)


def of_layers(pattern: str, n_layers: int) -> str:
    return "".join(itertools.islice(itertools.cycle(pattern), n_layers))


def shortest_period(letters: str) -> str:
    """What letters are some repetitions of."""
    sizes = (size for size in range(1, len(letters) + 1) if len(letters) % size == 0)
    return next(letters[:size] for size in sizes if letters[:size] * (len(letters) // size) == letters)
