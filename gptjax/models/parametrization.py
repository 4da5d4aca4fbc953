"""How initialisation, learning rates and multipliers go with width and depth, so that what is tuned small holds large.

    standard   as the config says, at every size
    mup        maximal update: Yang et al. 2022 (Tensor Programs V), table 8, the form with an output multiplier
    completep  muP and in depth a residual branch times base_depth / n_layers: Dey et al. 2025, table 1, alpha = 1

The config's numbers are those of a base model of model.base_width and model.base_depth, whose heads and MLP have the same
ratios to width (model.base_d_ff: another MLP); at m = d_model / base_width = 1 and depth n_layers = base_depth nothing differs
from the standard form. With m and M = n_layers / base_depth (1 but for completep):

                        initial std    learning rate            Adam's eps    multiplier
    hidden matrices     1/sqrt(m)      Adam 1/m, Muon 1/sqrt(m)  1/(m M)      residual branches 1/M
    vectors in blocks   -              1                         1/(m M)
    embeddings          1              1                         1/m
    head, if untied     1              1                         1/m          logits 1/m, tied or not
    attention           logits times 1/head_dim instead of 1/sqrt(head_dim) (model.attention_scale)

What counts for a hidden matrix is its number of inputs: f = d_ff / base_d_ff stands for m in that of the MLP's way down, and
the functions below say what becomes of Muon and SGD where f is not m.

Muon's updates are orthogonal, of spectral norm sqrt(width) in our scaling to Adam's RMS; the spectral condition (Yang, Simon
and Bernstein 2023) asks for one that width leaves alone. SGD's gradients shrink as 1/m, which m inputs of a hidden
matrix make up for: everything else learns m times as fast. Weight decay is decoupled: rate times decay stays what it is at the base,
as Dey et al. have it, and so does not shrink with hidden rates. eps shrinks with the gradients.

Which matrix is hidden, and whether its inputs or outputs are the MLP's, each parameter states itself (roles.py). To add a
parametrisation, give its factors here; gpt.py, optimizers.py and `gptjax coordcheck` ask nothing else.
"""

import dataclasses
import math
import typing

from gptjax.errors import choose
from gptjax.models import roles as roles_of_parameters

NAMES = ("standard", "mup", "completep")


def width_multiplier(config) -> float:
    """m of a ModelConfig; 1 in the standard form."""
    return 1.0 if config.parametrization == "standard" else config.d_model / config.base_width


def depth_multiplier(config) -> float:
    """M of a ModelConfig."""
    return config.n_layers / config.base_depth if config.parametrization == "completep" else 1.0


def mlp_multiplier(config) -> float:
    """f of a ModelConfig: m, or what model.base_d_ff makes of it."""
    return width_multiplier(config) if config.base_d_ff is None else config.ff_size / config.base_d_ff


def hidden_std(config, of_mlp: bool = False) -> float:
    """Of the initial matrices in the blocks, before what scale_residual_init does. of_mlp: whose inputs are the MLP's."""
    inputs = mlp_multiplier(config) if of_mlp else width_multiplier(config)
    return config.init_std if inputs == 1 else config.init_std / math.sqrt(inputs)


def residual_init_scale(config) -> float:
    """Of the maps into the residual stream: 1/sqrt(number of residual layers), Radford et al. 2019, section 2.3. Under
    completep of the base's layers, since the branches have a multiplier of their own."""
    layers = config.base_depth if config.parametrization == "completep" else config.n_layers
    return (2 * layers) ** -0.5 if config.scale_residual_init else 1.0


def scaled(x, factor: float):
    """x times a factor in x's dtype; x itself for 1, so that a model of the base's size is the standard one bit for bit."""
    return x if factor == 1 else x * factor


def logit_multiplier(config) -> float:
    return 1 / width_multiplier(config)


def branch_multiplier(config) -> float:
    return 1 / depth_multiplier(config)


def query_multiplier(config) -> float:
    """Beside the 1/sqrt(head_dim) that every attention kernel applies."""
    given = config.attention_scale or ("sqrt" if config.parametrization == "standard" else "linear")
    return choose({"sqrt": 1.0, "linear": config.head_size**-0.5}, given, "model.attention_scale")


def has_multipliers(config) -> bool:
    """Whether a model computes anything that the plain one does not."""
    return any(multiplier(config) != 1 for multiplier in (query_multiplier, branch_multiplier, logit_multiplier))


# ---- per parameter, as trees of floats; None where all are 1


def _adam(inputs: float, outputs: float, largest: float) -> float:
    """Of what moves every entry alike: as many as there are inputs add up."""
    return 1 / inputs


def _muon(inputs: float, outputs: float, largest: float) -> float:
    """From our spectral norm, the root of the larger size, to sqrt(outputs / inputs): 1/sqrt(m) where all sizes grow alike."""
    return math.sqrt(outputs / inputs / largest)


def _sgd(inputs: float, outputs: float, largest: float) -> float:
    """Yang, Simon and Bernstein 2023, section 4: 1 where all sizes grow alike."""
    return outputs / inputs


@dataclasses.dataclass(frozen=True)
class RateRule:
    """How the learning rates of an optimizer go with width."""

    hidden: typing.Callable[
        [float, float, float], float
    ]  # of a hidden matrix with so many times the base's inputs, outputs,
    # and larger of the model's two widths
    others: float = 0.0  # all else learns m to this power as fast
    fits_depth: bool = True  # whether its updates keep their size in a deep model, as completep asks


ENTRYWISE = RateRule(_adam)  # every entry moves by about the rate: Adam, Lion's signs, Adafactor's updates of RMS 1
ORTHOGONAL = RateRule(_muon)
GRADIENT = RateRule(
    _sgd, others=1.0, fits_depth=False
)  # updates are as large as gradients, which shrink in deep models


def learning_rate_factors(config, rule: RateRule, roles: dict, params):
    """Of a ModelConfig's parameters, each with its roles.Role by path, under an optimizer of this rule."""
    m, f = width_multiplier(config), mlp_multiplier(config)
    if m == f == 1:
        return None
    base_width, base_d_ff = config.d_model / m, config.ff_size / f
    largest = max(config.d_model, config.ff_size) / max(base_width, base_d_ff)

    def factor(role) -> float:
        if not role.is_hidden:
            return float(m**rule.others)
        inputs, outputs = (f if "mlp" in axes else m for axes in (role.input_axes, role.output_axes))
        of_mlp = "mlp" in role.input_axes + role.output_axes
        return float(rule.hidden(inputs, outputs, largest if of_mlp else m))

    return roles_of_parameters.by_role(factor, roles, params)


def gradient_factors(config, roles: dict, params):
    """Times which gradients keep, at the config's eps, the size that they have at the base: Adam(c g, eps) = Adam(g, eps/c)."""
    m, M = width_multiplier(config), depth_multiplier(config)
    if m == 1 and M == 1:
        return None
    return roles_of_parameters.by_role(lambda role: float(m * M if role.stacked else m), roles, params)
