"""The report of a scaling study: report.html that stands alone, report.md with small pictures beside it, results.json.

headline.py  verdict and conventions    laws.py  constants and optima    checks.py  extrapolation, sensitivity, noise
runs.py      tables of runs, how it was made            markdown.py  the Markdown; the page is made by pages.page
"""

import dataclasses
import json
import re

from etils import epath

from gptjax.pages import blocks, page
from gptjax.storage import outputs
from gptjax.study.report import checks, headline, laws, markdown, runs

PICTURES = "pictures"


def write(results: dict, directory) -> list[epath.Path]:
    """The files written: page, Markdown, JSON, and each picture as SVG and PNG.

    `results` is the dict of `gptjax study fit --json`. Raises UserError where matplotlib is missing.
    """
    from gptjax.study import pictures

    directory = epath.Path(directory).expanduser()
    drawn = {family: pictures.draw(found) for family, found in _families(results).items()}
    captions = {family: {one.name: one.caption for one in given} for family, given in drawn.items()}
    files = {_name(family, one.name): pictures.files(one) for family, given in drawn.items() for one in given}
    sections = contents(results, captions, directory)
    title = f"Scaling study: {results.get('study') or 'points'}"
    written = {
        "report.html": page.text(title, sections, {name: svg for name, (svg, _) in files.items()}),
        "report.md": markdown.text(title, sections, {name: f"{PICTURES}/{name}.png" for name in files}),
        "results.json": json.dumps(results, indent=1, allow_nan=False) + "\n",
    }
    for name, (svg, png) in files.items():
        written |= {f"{PICTURES}/{name}.svg": svg, f"{PICTURES}/{name}.png": png}
    (directory / PICTURES).mkdir(parents=True, exist_ok=True)
    _tidy(directory / PICTURES, pictures.NAMES)
    return [_write(directory / name, content) for name, content in written.items()]


def check(directory) -> None:
    """Raises UserError: no report could be written there, or drawn here. To be asked before long work."""
    from gptjax.study.pictures import style

    style.settings()
    outputs.check_folder("--report", directory)


def contents(results: dict, captions: dict[str, dict[str, str]], directory) -> list[blocks.Section]:
    """All sections there is something to say in, the verdict first. `captions`: family -> name -> of the pictures there are."""
    found = []
    for family, part in _families(results).items():
        drawn = captions.get(family, {})
        sections = [
            headline.verdict(part, drawn),
            headline.conventions(part),
            *laws.sections(part, drawn),
            *checks.sections(part, drawn),
            *runs.sections(part, drawn, directory),
        ]
        found += [blocks.Section(f"The other family: {family}", []), *_nested(sections, family)] if family else sections
    return found


def _families(results: dict) -> dict[str, dict]:
    """ "" -> all; and what the study holds of each other family of models, by name."""
    about = {key: results[key] for key in ("directory",) if key in results}
    return {"": results} | {name: about | part for name, part in (results.get("families") or {}).items()}


def _nested(sections: list[blocks.Section], family: str) -> list[blocks.Section]:
    """One level lower, with the pictures of this family."""
    return [
        dataclasses.replace(section, level=3, blocks=[_renamed(block, family) for block in section.blocks])
        for section in sections
    ]


def _renamed(block, family: str):
    return dataclasses.replace(block, name=_name(family, block.name)) if isinstance(block, blocks.Figure) else block


def _name(family: str, picture: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', family)}-{picture}" if family else picture


def _tidy(folder: epath.Path, names: set[str]) -> None:
    """Pictures of an earlier report go: the Markdown would not show them, a reader of the folder would take them for new."""
    for path in folder.iterdir():
        if path.suffix in (".svg", ".png") and path.stem.rpartition("-")[2] in names:
            path.unlink()


def _write(path: epath.Path, content: str | bytes) -> epath.Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
