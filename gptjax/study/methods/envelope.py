"""Approach 1 of Hoffmann et al. 2022, which takes training curves instead of points."""

import dataclasses

import numpy as np

from gptjax.pages import palette
from gptjax.study.fits import envelope
from gptjax.study.methods import section
from gptjax.study.methods.method import Method


class Envelope(Method):
    title = "Envelope of training curves (approach 1)"
    called = "the envelope"
    form = "The run that is best at each compute, from the training curves; N* = N_scale C^a, D* = D_scale C^b."
    constants = ("a", "b", "N_scale", "D_scale")
    figures = ("curves",)
    label = "envelope (approach 1)"
    colour = palette.GREEN
    caveat = (
        "the envelope uses losses from the middle of a schedule, which lie above those of a schedule of that length"
    )

    def reported(self, case, say):
        if not case.curves:
            return None
        say(f"fitting {self.called}, {case.options.replicates} replicates")
        curves = [
            envelope.Curve(one["run"], one["params"], *(np.array(one[name]) for name in ("flops", "tokens", "loss")))
            for one in case.curves
        ]
        budgets = case.options.budgets or (max(float(curve.flops[-1]) for curve in curves),)
        found = section.intervals(envelope.fit, curves, case.options, budgets)
        return {
            **section.shown(found, budgets),
            "winners": [dataclasses.asdict(winner) for winner in found.fit.winners],
            "holdout_error": None,
            "holdout": {"refused": ["not of curves"]},
            "sensitivity": [],
            "points_excluded": case.gathered.excluded,
        }
