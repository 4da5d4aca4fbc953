"""Exercises with one right answer each, from files of JSON lines."""

import json
import pathlib

from gptjax.errors import UserError

FIELDS = ("task", "prompt", "answer")


def is_right(reference: str, text: str, ended: bool) -> bool:
    """Whether an answer is that of the exercise, spaces at the ends aside, and has ended."""
    return ended and text.strip() == reference.strip()


def read_exercises(file: pathlib.Path, flag: str = "--exercises") -> list[dict[str, str]]:
    """{"task", "prompt", "answer"} of each line. Raises UserError: no file, the first line that is no exercise, none at all."""
    if not file.is_file():
        raise UserError(f"{flag}={file} is no file; expected lines of {', '.join(FIELDS)}.")
    exercises = []
    for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            exercises.append({name: str(record[name]) for name in FIELDS})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}:{number} is no exercise; expected {', '.join(FIELDS)}.") from error
    if not exercises:
        raise UserError(f"{flag}={file} is empty; expected lines of {', '.join(FIELDS)}.")
    return exercises
