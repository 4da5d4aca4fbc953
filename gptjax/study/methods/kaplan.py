"""The power laws of Kaplan et al. 2020, which have no irreducible loss."""

from gptjax.pages import palette
from gptjax.study.fits import kaplan
from gptjax.study.methods.method import Method
from gptjax.study.methods.parametric import other_deltas


class Kaplan(Method):
    title = "Kaplan's power laws"
    called = "Kaplan's laws"
    plural = True
    form = (
        "L(N) = (N_c / N)^alpha_N, L(D) = (D_c / D)^alpha_D, L(C) = (C_c / C)^alpha_C, and the joint form"
        " L(N, D) = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D (Kaplan et al. 2020, equations 1.1 to 1.5)."
    )
    constants = (
        "N_c", "alpha_N", "D_c", "alpha_D", "C_c", "alpha_C",
        "joint_N_c", "joint_D_c", "joint_alpha_N", "joint_alpha_D", "a", "b",
    )  # fmt: skip
    label = "Kaplan, joint form"
    colour = palette.PURPLE
    no_headline = "Kaplan's laws have no irreducible loss, so their exponents are not used as the main result"

    def fit(self, points, options):
        return kaplan.fit(points, delta=options.delta)

    def predict(self, fit, points):
        return fit.joint.loss(points.params, points.tokens)

    def variations(self, options):
        return other_deltas(options)

    def why_it_differs(self, results):
        law = results.get("parametric") or {}
        stands = law.get("E") is not None and not law["refused"]
        floor = f", which the parametric law puts at {law['E']:.2f} nats per token" if stands else ""
        return [f"Kaplan's laws have no irreducible loss{floor}, so they bend where it matters"]
