"""Which architectures there are: where the code of each stands, and what a config may ask of it.

A table of names alone, without JAX: a model and the module that counts it are imported when they are chosen. To add a model,
write its module beside gpt.py (a copied and changed GPT, say, which stands alone), the functions of gpt_counts for it, and
one entry here. A model whose layers have the same matrices as GPT's is counted by gpt_counts itself; one that has no part
for some fields of the config, as an LSTM has no heads, names them in `foreign`.
"""

import dataclasses

from gptjax.errors import UserError, choose, imported, make_chosen


@dataclasses.dataclass(frozen=True)
class Architecture:
    """model: "module:class", an nnx.Module(config, key, kernel) with the methods of gpt.GPT. counts: the module with the
    functions of gpt_counts for it; ours import no JAX."""

    model: str
    counts: str
    has_attention: bool = True  # whether layers attend, so that tokens and layers can be split over devices
    sees_ahead: bool = True  # whether a token can see later ones, as some objectives ask
    remat: tuple[str, ...] = ("none", "dots", "attention", "mlp", "full", "offload")  # policies that its layers have
    foreign: tuple[str, ...] = ()  # fields of ModelConfig that change nothing in it


ARCHITECTURES = {
    "gpt": Architecture("gptjax.models.gpt:GPT", "gptjax.models.gpt_counts"),
    "lstm": Architecture(
        "gptjax.models.lstm:LSTM",
        "gptjax.models.lstm_counts",
        has_attention=False,
        sees_ahead=False,
        remat=("none", "full"),
        foreign=(
            *("n_heads", "n_kv_heads", "head_dim", "d_ff", "norm", "norm_position", "norm_eps", "final_norm", "mlp"),
            *("position", "rope_theta", "rope_scaling", "rope_pattern", "qk_norm", "band_width", "window_pattern"),
            *("attention", "attention_dropout", "linear_bias", "scale_embedding"),
            *("init_std", "position_init_std", "scale_residual_init"),
            *("parametrization", "base_width", "base_depth", "base_d_ff"),
            *("attention_scale", "task_head", "adapter", "critic"),
        ),
    ),
}


def entry(name: str) -> Architecture:
    """The entry of model.architecture=name. Raises UserError for a name that has none."""
    try:
        return choose(ARCHITECTURES, name, "model.architecture")
    except UserError as error:
        raise UserError(f"{error} A new architecture is an entry of catalogue.ARCHITECTURES.") from None


def model_class(name: str):
    """The class of an architecture, imported now. Raises UserError: its entry names none."""
    return imported(entry(name).model, f"model.architecture={name!r}")


def counts(name: str):
    """The module that counts an architecture, imported now. Raises UserError: its entry names none."""
    return imported(entry(name).counts, f"model.architecture={name!r}")


# What model.adapter may name: a frozen dataclass of models/adapters/adapter.py each, whose fields are its parameters.
ADAPTERS = {
    "lora": "gptjax.models.adapters.lora:Lora",
    "rslora": "gptjax.models.adapters.lora:RankStabilized",
    "dora": "gptjax.models.adapters.lora:Dora",
    "adalora": "gptjax.models.adapters.adalora:AdaLora",
    "ia3": "gptjax.models.adapters.ia3:IA3",
    "bottleneck": "gptjax.models.adapters.bottleneck:Bottleneck",
    "prefix": "gptjax.models.adapters.prefix:Prefix",
    "prompt": "gptjax.models.adapters.prefix:Prompt",
}


def adapter(text: str):
    """The adapters.adapter.Adapter that model.adapter names. Raises UserError: there is none of the name, or it takes no such
    parameter."""
    return make_chosen(text, ADAPTERS, "model.adapter")


def check_stages(model, stages: int) -> None:
    """Raises UserError: the adapter of a ModelConfig stands before the layers of all stages of a pipeline at once."""
    if stages > 1 and model.adapter is not None and adapter(model.adapter).prefix_length:
        raise UserError(f"model.adapter={model.adapter!r} can't be split into stages; set mesh.stage=1.")


# What model.critic may name: a frozen dataclass of models/critic.py each.
CRITICS = {"shared": "gptjax.models.critic:Shared", "separate": "gptjax.models.critic:Separate"}


def critic(text: str):
    """The critic that model.critic names. Raises UserError: there is none of the name, or it takes no such parameter."""
    return make_chosen(text, CRITICS, "model.critic")
