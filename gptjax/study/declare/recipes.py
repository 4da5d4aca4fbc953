"""What a study derives instead of listing: shapes from one dial, and rules for learning rate, batch and warmup.

A shape is {"section.field": value}, changes of the base config; a recipe of shapes returns them by name. A rule is a
function of a run's Facts; its name says in tables where a number came from. To add a rule, write another function.
"""

import dataclasses
import math
import typing

from gptjax import flops
from gptjax.config import catalogue
from gptjax.config.fields import ModelConfig
from gptjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a run when its rules are asked."""

    config: typing.Any  # Config with shape, seed and grid, its vocabulary and the rules asked before
    flops: float  # that the run may spend
    tokens: float

    @property
    def params(self) -> int:
        return flops.parameters(self.config.model).total

    @property
    def non_embedding(self) -> int:
        return flops.parameters(self.config.model).non_embedding

    @property
    def batch_tokens(self) -> int:
        return self.config.tokens_per_step


@dataclasses.dataclass(frozen=True)
class Rule:
    """A number from Facts."""

    name: str
    value: typing.Callable[[Facts], float]

    def __call__(self, facts: Facts) -> float:
        return self.value(facts)


# ---- shapes from one dial


def by_depth(depths, aspect: float = 64, head_dim: int = 64, **fields) -> dict[str, dict]:
    """Width aspect * depth, rounded up to whole heads. fields: of the model, for all shapes."""
    return {f"d{depth}": _shape(depth, _whole_heads(aspect * depth, head_dim), head_dim, fields) for depth in depths}


def by_width(widths, n_layers: int, head_dim: int = 64, **fields) -> dict[str, dict]:
    """Width alone, as muP varies it; every width a multiple of head_dim."""
    for width in widths:
        if width % head_dim:
            raise UserError(f"a width of {width} is not a multiple of head_dim={head_dim}; use whole heads.")
    return {f"w{width}": _shape(n_layers, width, head_dim, fields) for width in widths}


def by_params(params, aspect: float = 64, head_dim: int = 64, **fields) -> dict[str, dict]:
    """The depth and width nearest to counts of 12 n_layers d_model^2 (Kaplan et al. 2020, section 2.1, non-embedding
    parameters without biases) at about this ratio of width to depth."""
    shapes = {}
    for wanted in params:
        depths = range(1, max(2, math.ceil(2 * (wanted / (12 * aspect**2)) ** (1 / 3)) + 2))
        options = [(depth, _whole_heads(math.sqrt(wanted / (12 * depth)), head_dim)) for depth in depths]
        depth, width = min(options, key=lambda shape: _distance(*shape, wanted, aspect))
        shapes[f"d{depth}w{width}"] = _shape(depth, width, head_dim, fields)
    if len(shapes) < len(params):
        raise UserError(f"by_params finds only {len(shapes)} shapes for {len(params)} counts; use a smaller head_dim.")
    return shapes


def lstm_by_params(params, n_layers: int = 2, **fields) -> dict[str, dict]:
    """LSTMs of the width, a multiple of 8, nearest to counts of 8 n_layers d_model^2 (non-embedding parameters without
    biases), in place of the base's transformer: what only that has is set to its default."""
    shapes = {}
    for wanted in params:
        width = max(8, 8 * round(math.sqrt(wanted / (8 * n_layers)) / 8))
        model = ModelConfig().with_architecture("lstm", n_layers=n_layers, d_model=width, **fields)
        given = {"architecture", "n_layers", "d_model", *fields, *catalogue.entry("lstm").foreign}
        shapes[f"lstm-w{width}"] = {f"model.{name}": getattr(model, name) for name in sorted(given)}
    if len(shapes) < len(params):
        raise UserError(f"lstm_by_params finds only {len(shapes)} widths for {len(params)} counts; leave some out.")
    return shapes


def _distance(depth: int, width: int, wanted: float, aspect: float) -> float:
    """From the count first, from the aspect ratio a little, in units of log."""
    return abs(math.log(12 * depth * width**2 / wanted)) + 0.2 * abs(math.log(width / (aspect * depth)))


def _whole_heads(width: float, head_dim: int) -> int:
    return max(1, round(width / head_dim)) * head_dim


def _shape(n_layers: int, d_model: int, head_dim: int, fields: dict) -> dict:
    model = {"n_layers": n_layers, "d_model": d_model, "n_heads": d_model // head_dim, **fields}
    return {f"model.{name}": value for name, value in model.items()}


# ---- learning rates


def fixed(value: float) -> Rule:
    """The same for all runs: a learning rate, a batch in sequences, or a fraction of the steps."""
    return Rule(f"fixed {value:g}", lambda facts: value)


def kaplan_lr() -> Rule:
    """Kaplan et al. 2020, eq. D.1, for Adam; N without embeddings, at most some billions."""

    def rate(facts: Facts) -> float:
        value = 0.003239 - 0.0001395 * math.log(facts.non_embedding)
        if value <= 0:
            raise UserError(f"kaplan_lr has no learning rate for {facts.non_embedding:,} parameters; use another rule.")
        return value

    return Rule("kaplan", rate)


def deepseek_lr() -> Rule:
    """DeepSeek-AI 2024 (DeepSeek LLM), eq. 1: 0.3118 C^-0.1250, fitted from 1e17 to 2e19 FLOPs."""
    return Rule("deepseek", lambda facts: 0.3118 * facts.flops**-0.1250)


def porian_lr() -> Rule:
    """Porian et al. 2024, rounded fit of their figure 4: 0.0047 (N / 108M)^(-1/3)."""
    return Rule("porian", lambda facts: 0.0047 * (facts.params / 108e6) ** (-1 / 3))


def sqrt_batch_lr(rate: float, batch_tokens: float) -> Rule:
    """Proportional to the root of the batch, as Adam wants it (Malladi et al. 2022): `rate` at `batch_tokens`."""
    name = f"{rate:g} at {batch_tokens:g} tokens, sqrt"
    return Rule(name, lambda facts: rate * math.sqrt(facts.batch_tokens / batch_tokens))


@dataclasses.dataclass(frozen=True)
class Tuned:
    """Each size's best of some rates at one budget: runs of their own, before all others."""

    rates: tuple[float, ...]
    budget: float  # FLOPs of each tuning run
    seed: int = 0
    name: str = "tuned"


def tuned(rates, budget: float, seed: int = 0) -> Tuned:
    """The learning rates of a size are tried at `budget` FLOPs; the best one is that of all its runs. A size without tuning
    runs, as a target's, takes that of the tuned size whose parameters are nearest (in log)."""
    return Tuned(tuple(rates), budget, seed)


def best_rate(losses: dict[float, float]) -> float:
    """The learning rate of the lowest loss; inf stands for a run that diverged. Raises UserError if all did."""
    rate = min(losses, key=losses.get)
    if not math.isfinite(losses[rate]):
        raise UserError(
            f"every tuning run diverged, of learning rates {sorted(losses)}; add smaller ones to the study."
        )
    return rate


# ---- batches, in sequences


def kaplan_batch(loss: float) -> Rule:
    """The critical batch at a loss, Kaplan et al. 2020, eq. 1.4 and 5.3: 2e8 tokens / L^(1/0.21)."""
    return Rule("kaplan", lambda facts: _sequences(facts, 2e8 / loss ** (1 / 0.21)))


def deepseek_batch() -> Rule:
    """DeepSeek-AI 2024, eq. 1: 0.2920 C^0.3271 tokens."""
    return Rule("deepseek", lambda facts: _sequences(facts, 0.2920 * facts.flops**0.3271))


def porian_batch() -> Rule:
    """Porian et al. 2024, rounded fit of their figure 4: 160 (N / 108M)^(2/3) sequences of 2048 tokens."""
    return Rule("porian", lambda facts: _sequences(facts, 2048 * 160 * (facts.params / 108e6) ** (2 / 3)))


def _sequences(facts: Facts, tokens: float) -> int:
    """At least one, a multiple of train.microbatches."""
    parts = facts.config.train.microbatches
    return max(1, round(tokens / facts.config.model.context_length / parts)) * parts


# ---- warmups, in steps


def warmup_fraction(fraction: float) -> Rule:
    """Of the run's steps."""
    return Rule(f"{fraction:g} of the steps", lambda facts: fraction * facts.tokens / facts.batch_tokens)


def porian_warmup() -> Rule:
    """As many tokens as the model has parameters (Porian et al. 2024, section 3.3), but at most a tenth of the run."""
    return Rule("porian", lambda facts: min(facts.params, 0.1 * facts.tokens) / facts.batch_tokens)
