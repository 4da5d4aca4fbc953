"""The report of a scaling study: report.html that stands alone, report.md with small pictures beside it, results.json.

headline.py  verdict and conventions     checks.py  extrapolation, sensitivity, noise
blocks.py    what both twins are of     laws.py      constants and optima        runs.py    tables of runs, how it was made
page.py, markdown.py                    the twins
"""

import json
import pathlib

from gptjax.study.report import blocks, checks, headline, laws, markdown, page, runs

PICTURES = "pictures"


def write(results: dict, directory) -> list[pathlib.Path]:
    """The files written: page, Markdown, JSON, and each picture as SVG and PNG.

    `results` is the dict of `gptjax study fit --json`. Raises UserError where matplotlib is missing.
    """
    from gptjax.study import pictures

    directory = pathlib.Path(directory).expanduser()
    drawn = pictures.draw(results)
    files = {picture.name: pictures.files(picture) for picture in drawn}
    sections = contents(results, {picture.name: picture.caption for picture in drawn}, directory)
    title = f"Scaling study: {results.get('study') or 'points'}"
    (directory / PICTURES).mkdir(parents=True, exist_ok=True)
    written = {
        "report.html": page.text(title, sections, {name: svg for name, (svg, _) in files.items()}),
        "report.md": markdown.text(title, sections, {name: f"{PICTURES}/{name}.png" for name in files}),
        "results.json": json.dumps(results, indent=1, allow_nan=False) + "\n",
    }
    for name, (svg, png) in files.items():
        written |= {f"{PICTURES}/{name}.svg": svg, f"{PICTURES}/{name}.png": png}
    for name in pictures.NAMES - files.keys():  # of an earlier report in this folder
        for ending in ("svg", "png"):
            (directory / PICTURES / f"{name}.{ending}").unlink(missing_ok=True)
    return [_write(directory / name, content) for name, content in written.items()]


def contents(results: dict, drawn: dict[str, str], directory: pathlib.Path) -> list[blocks.Section]:
    """All sections there is something to say in, the verdict first. `drawn`: name -> caption of the pictures there are."""
    return [
        headline.verdict(results, drawn),
        headline.conventions(results),
        *laws.sections(results, drawn),
        *checks.sections(results, drawn),
        *runs.sections(results, drawn, directory),
    ]


def _write(path: pathlib.Path, content: str | bytes) -> pathlib.Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
