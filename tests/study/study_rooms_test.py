"""The rooms of the study import each other downwards."""

import ast
import pathlib

import gptjax

ORDER = ("declare", "running", "lanes", "fits", "methods", "results", "pictures", "report")
STUDY = pathlib.Path(gptjax.__file__).parent / "study"


def imported_rooms(file: pathlib.Path) -> set[str]:
    """Rooms of the study that a file names in an import, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[2] for name in names if name.startswith("gptjax.study.")}


def test_every_room_imports_only_those_before_it():
    rooms = {folder.name for folder in STUDY.iterdir() if (folder / "__init__.py").exists()}
    assert rooms == set(ORDER)
    for place, room in enumerate(ORDER):
        for file in sorted((STUDY / room).glob("*.py")):
            assert imported_rooms(file) <= set(ORDER[: place + 1]), file
