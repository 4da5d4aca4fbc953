"""Approach 1 of Hoffmann et al. 2022 (section 3.1): at each compute the run whose loss is lowest, and a power law through those.

The losses are taken as they are: of evaluations, or training losses the caller has smoothed, for the lowest of many noisy
ones is too low. A run in the middle of its schedule stands above what a schedule of that length would have reached.
"""

import dataclasses

import numpy as np

from gptjax.errors import UserError
from gptjax.study.fits.fit import BudgetLaws
from gptjax.study.fits.laws import PowerLaw, saturating

ENOUGH = 3  # sizes that win somewhere: two lie on a power law whatever they are
BUDGETS = 200


@dataclasses.dataclass(frozen=True)
class Curve:
    """The training curve of one run: arrays over the steps at which it was evaluated."""

    run: str
    params: float
    flops: np.ndarray  # spent until then, growing
    tokens: np.ndarray
    loss: np.ndarray

    def at(self, flops: float) -> tuple[float, float] | None:
        """(tokens, loss) once `flops` are spent, by lines in logarithms; None where the run was not measured."""
        if not self.flops[0] <= flops <= self.flops[-1]:
            return None
        x = np.log(self.flops)
        tokens, loss = (np.interp(np.log(flops), x, np.log(values)) for values in (self.tokens, self.loss))
        return float(np.exp(tokens)), float(np.exp(loss))


@dataclasses.dataclass(frozen=True)
class Winner:
    flops: float
    run: str
    params: float
    tokens: float
    loss: float
    refused: str | None  # an edge winner: no smaller or no larger run was there to lose


@dataclasses.dataclass(frozen=True)
class EnvelopeFit(BudgetLaws):
    winners: list[Winner]  # at log-spaced compute, refused ones too
    params_law: PowerLaw
    tokens_law: PowerLaw
    loss_law: PowerLaw
    loss_E: float  # L* = loss_E + loss_law(C)
    points_used: int  # winners that are not refused
    refused: list[str]

    def runs(self, curves: list[Curve]) -> tuple[str, ...]:
        return tuple(curve.run for curve in curves)

    def refits(self, curves: list[Curve], weight_RP: np.ndarray) -> list["EnvelopeFit"]:
        """The power laws with each winner weighed as its run is. Who wins stays: the lowest of few knows no weights."""
        column = {curve.run: i for i, curve in enumerate(curves)}
        owner = [column[winner.run] for winner in self.winners]
        return [_through(self.winners, weight[owner]) for weight in weight_RP]


def fit(curves: list[Curve], *, budgets: int = BUDGETS) -> EnvelopeFit:
    """Laws through the winners at `budgets` log-spaced values of compute, from the first evaluation to the last of all."""
    curves = [_checked(curve) for curve in curves]
    if not curves:
        return _through([], np.empty(0))
    first, last = min(curve.flops[0] for curve in curves), max(curve.flops[-1] for curve in curves)
    winners = [_winner(curves, float(flops)) for flops in np.geomspace(first, last, budgets)]
    winners = [winner for winner in winners if winner is not None]
    return _through(winners, np.ones(len(winners)))


def _winner(curves: list[Curve], flops: float) -> Winner | None:
    """None: no run was measured there."""
    there = [(curve, measured) for curve in curves if (measured := curve.at(flops))]
    if not there:
        return None
    best, (tokens, loss) = min(there, key=lambda pair: pair[1][1])
    sizes = [curve.params for curve, _ in there]
    refused = None
    if best.params in (min(sizes), max(sizes)):
        side = "smaller" if best.params == min(sizes) else "larger"
        refused = f"no {side} run was measured at this compute, so this may not be the best size"
    return Winner(flops, best.run, best.params, tokens, loss, refused)


def _through(winners: list[Winner], weight: np.ndarray) -> EnvelopeFit:
    good = np.array([winner.refused is None and w > 0 for winner, w in zip(winners, weight)], bool)
    held, weight = [winner for winner, ok in zip(winners, good) if ok], weight[good]
    sizes = len({winner.params for winner in held})
    reason = f"{sizes} sizes are the best at some compute, between smaller and larger runs; a power law needs {ENOUGH}"
    if sizes < ENOUGH:
        nothing = PowerLaw(np.nan, np.nan, np.nan)
        return EnvelopeFit(winners, nothing, nothing, nothing, np.nan, len(held), [reason])
    flops, params, tokens, loss = np.array([(w.flops, w.params, w.tokens, w.loss) for w in held]).T
    loss_E, loss_law = saturating(flops, loss)
    laws = (PowerLaw.through(flops, values, weight) for values in (params, tokens))
    return EnvelopeFit(winners, *laws, loss_law, loss_E, len(held), [])


def _checked(curve: Curve) -> Curve:
    arrays = {name: np.asarray(getattr(curve, name), float) for name in ("flops", "tokens", "loss")}
    lengths = sorted({len(values) for values in arrays.values()})
    if len(lengths) != 1 or lengths == [0]:
        raise UserError(
            f"run {curve.run}: flops, tokens and loss have {lengths} values; a curve has one of each per step"
        )
    for name, values in [*arrays.items(), ("params", np.array([curve.params]))]:
        bad = values[~(np.isfinite(values) & (values > 0))]
        if len(bad):
            raise UserError(
                f"run {curve.run}: {name} is {bad[0]}, a curve needs a finite number above 0; cut it before"
            )
    if np.any(np.diff(arrays["flops"]) <= 0):
        raise UserError(f"run {curve.run}: the FLOPs of a curve must grow from one evaluation to the next")
    return dataclasses.replace(curve, **arrays)
