"""What a fit method says and does, and what it is given."""

import dataclasses
import functools
import typing

import numpy as np

from gptjax.study.fits import parametric
from gptjax.study.fits.fit import Fit
from gptjax.study.fits.points import Gathered, Points
from gptjax.study.methods import catalogue, checks, section


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line asks of every fit."""

    methods: tuple[str, ...] = dataclasses.field(default_factory=catalogue.by_default)
    budgets: tuple[float, ...] = ()  # FLOPs to give the best split of, beside those of the points
    replicates: int = 1000  # of the bootstrap
    delta: float = parametric.DELTA  # of the Huber loss
    starts: int = parametric.STARTS  # of the parametric fit; checks of it use fewer
    seed: int = 0  # of starts and replicates
    window: float | None = None  # of isoFLOPs: ratio to the optimum within which points count; None: the points choose
    holdout: float | None = None  # FLOPs from which points are held out; below 1: their part; None: the largest budget


@dataclasses.dataclass(frozen=True)
class Case:
    """One family of runs under one convention of N and one of C, and what is asked of its fits."""

    gathered: Gathered
    params: str  # convention of N
    flops: str  # of C
    options: Options

    @functools.cached_property
    def points(self) -> Points:
        """Raises UserError for a convention that the rows were not counted in."""
        return self.gathered.points(self.params, self.flops)

    @functools.cached_property
    def curves(self) -> list[dict]:
        return self.gathered.curves(self.params, self.flops)


class Method:
    """A method states what is said of it and computes `fit` and `predict`; the rest is as for a law of N and D, and
    overridden where a method differs."""

    title: str  # of its section
    called: str  # within a sentence
    plural = False  # of what it is called
    form: str  # the law in symbols, and where it comes from
    constants: tuple[str, ...]  # names, in the order of their table; others that have an interval follow
    facts: tuple[str, ...] = ()  # attributes of the fit that are reported beside its constants
    figures: tuple[str, ...] = ()  # names of pictures that belong into its section
    label: str  # in the legend of best splits
    colour: str  # there
    line_width = 1.1  # there, points
    shows_vertices = False  # there: markers and bars at its optima instead of a line and bands
    by_default = True  # fitted unless others are asked for
    no_headline: str | None = None  # why its exponents alone make none; None: they may
    caveat: str | None = None  # of a headline that is by this method
    sees_flops = False  # whether C comes into the law; the others split a budget by C = 6 N D

    def fit(self, points: Points, options: Options) -> Fit:
        raise NotImplementedError

    def predict(self, fit: Fit, points: Points) -> np.ndarray:
        """The loss [P] of points by the law, nats per token."""
        raise NotImplementedError

    def reported(self, case: Case, say: typing.Callable[[str], None]) -> dict | None:
        """All that is reported of it, as JSON but for NumPy's numbers; None where there is nothing to fit it to.

        say: takes a line on what is being done.
        """
        say(f"fitting {self.called}, {case.options.replicates} replicates")
        found = section.of(self, case.points, case.options)
        say(f"checking {self.called}")
        found |= checks.holdout(self, case.points, case.options)
        found["sensitivity"] = checks.sensitivity(self, case)
        found |= self.beside(found, case)
        return found | {"points_excluded": case.gathered.excluded + self.left_out(found, case.points)}

    def residual(self, fit: Fit, points: Points) -> float | None:
        """Standard deviation of what the law leaves of ln L; None where nothing can be left."""
        free = len(points) - fit.num_constants
        if free < 1:
            return None
        return float(np.sqrt(np.sum(self.residuals(fit, points) ** 2) / free))

    def residuals(self, fit: Fit, points: Points) -> np.ndarray:
        """ln of measured over expected loss [P]; NaN of a point for which the method says nothing."""
        return np.log(points.loss) - np.log(self.predict(fit, points))

    def held_out(self, fit: Fit, points: Points) -> Points | None:
        """Of held-out points, what a law through the others is held against; None where that cannot be had."""
        return points

    def held_out_intervals(self, below: Points, target: Points, options: Options) -> list[dict]:
        """{"interval80", "interval95"} of the loss of each held-out point, by the law through the points below."""
        return [{} for _ in target.loss]

    def variations(self, options: Options) -> dict[str, Options]:
        """Other choices of the method's own, by what they change."""
        return {}

    def left_out(self, found: dict, points: Points) -> list[dict]:
        """{"run", "reason", ...} of points that this method alone does not use."""
        return []

    def beside(self, found: dict, case: Case) -> dict:
        """What else is reported of it, or replaces what was found."""
        return {}

    def why_it_differs(self, results: dict) -> list[str]:
        """Likely reasons that its exponent is not that of the headline. results: of all methods."""
        return []
