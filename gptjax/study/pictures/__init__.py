"""The pictures of a study, each drawn from the results of `gptjax study fit` or left out where they hold nothing for it.

style.py  how they look, and their files        laws.py  isoFLOP curves, frontier, best split, residuals
checks.py held-out points, sensitivity, larger runs        runs.py  learning rates, curves, texts, architectures
Needs matplotlib: pip install 'gptjax[study]'.
"""

from gptjax.study.pictures import checks, laws, runs, style
from gptjax.study.pictures.style import Picture

_ALL = (
    laws.isoflop,
    laws.frontier,
    laws.split,
    laws.residuals,
    checks.holdout,
    checks.sensitivity,
    checks.prediction,
    runs.learning_rate,
    runs.curves,
    runs.loss_to_loss,
    runs.architectures,
)
NAMES = {make.__name__ for make in _ALL}

__all__ = ["NAMES", "Picture", "draw", "files"]


def draw(results: dict) -> list[Picture]:
    """Those there is something to draw for. Raises UserError where matplotlib is missing."""
    with style.settings():
        return [picture for make in _ALL if (picture := make(results)) is not None]


def files(picture: Picture) -> tuple[bytes, bytes]:
    """SVG and PNG."""
    with style.settings():
        return style.svg(picture), style.png(picture)
