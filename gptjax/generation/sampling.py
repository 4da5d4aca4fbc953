"""From logits to a token. Pure functions of arrays: B rows, V vocabulary; the value of every option is an array [B].

The order is that of Hugging Face's generate: penalties, temperature, top-k, top-p, min-p, each on what the one before
has left.
"""

import functools
import itertools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.generation.settings import OPTIONS, Settings


class Counts(typing.NamedTuple):
    """Which tokens the rows have already."""

    seen_BV: jax.Array | np.ndarray  # bool: in prompt or text
    count_BV: jax.Array | np.ndarray  # int32: how often in the text, without the prompt

    def with_tokens(self, token_B) -> "Counts":
        """After one token more of each row."""
        row_B = jnp.arange(len(token_B))
        return Counts(self.seen_BV.at[row_B, token_B].set(True), self.count_BV.at[row_B, token_B].add(1))


def table() -> tuple:
    """OPTIONS as they are now, hashable: programs are compiled for them."""
    return tuple(OPTIONS.items())


def values(settings: list[Settings], rows: int) -> dict[str, np.ndarray]:
    """{option: its value for each of so many rows, [B]}; rows beyond the settings have all options off."""
    arrays = {}
    for name, option in OPTIONS.items():
        wanted = [each.options.get(name, option.default) for each in settings]
        filled = [option.off if value is None else value for value in wanted] + [option.off] * (rows - len(settings))
        arrays[name] = np.array(filled, np.int32 if option.kind is int else np.float32)
    return arrays


def draw(options, logit_BV, key_B, value_B: dict, counts: Counts | None, *, logprobs: bool = False):
    """(a token of each row by its own key, its log-probability under what it was drawn from, or None). The likeliest at
    temperature 0, whose log-probability is 0. counts: None where no row penalises."""
    if counts is not None:
        logit_BV = apply([named for named in options if not named[1].drawing], logit_BV, value_B, counts)
    likeliest_B = jnp.argmax(logit_BV, axis=-1).astype(jnp.int32)
    certain_B = jnp.zeros(len(likeliest_B), jnp.float32) if logprobs else None

    def drawn(_):
        shaped_BV = apply([named for named in options if named[1].drawing], logit_BV, value_B)
        drawn_B = jax.vmap(jax.random.categorical)(key_B, shaped_BV).astype(jnp.int32)
        token_B = jnp.where(value_B["temperature"] == 0, likeliest_B, drawn_B)
        logprob_B = jnp.where(value_B["temperature"] == 0, 0.0, logprob(shaped_BV, token_B)) if logprobs else None
        return token_B, logprob_B

    # A random number for each entry of the vocabulary is a tenth of a CPU's time for a token of GPT-2 small.
    return jax.lax.cond((value_B["temperature"] != 0).any(), drawn, lambda _: (likeliest_B, certain_B), None)


def logprob(logit_BV, token_B):
    """Log-probability of a token of each row under the softmax of these logits."""
    return logit_BV[jnp.arange(len(token_B)), token_B] - jax.nn.logsumexp(logit_BV, axis=-1)


def apply(options, logit_BV, value_B: dict, counts: Counts | None = None):
    """Logits after some options, each of a row's own value. What no row uses costs nothing."""
    for are_cuts, neighbours in itertools.groupby(options, key=lambda named: named[1].cut is not None):
        neighbours = list(neighbours)
        used = functools.reduce(jnp.logical_or, [(value_B[name] != option.off).any() for name, option in neighbours])
        stage = _cut if are_cuts else functools.partial(_change, counts=counts)
        stage = functools.partial(stage, neighbours, value_B)
        logit_BV = jax.lax.cond(used, stage, lambda logit_BV: logit_BV, logit_BV)
    return logit_BV


def _change(options, value_B, logit_BV, *, counts):
    for name, option in options:
        logit_BV = option.function(logit_BV, value_B[name][:, None], counts).astype(logit_BV.dtype)
    return logit_BV


def _cut(options, value_B, logit_BV):
    """Logits with all that a cut leaves out at -inf."""
    sorted_BV = jnp.sort(logit_BV, axis=-1, descending=True)
    for name, option in options:
        smallest_B1 = option.function(sorted_BV, value_B[name][:, None])
        sorted_BV = jnp.where(sorted_BV >= smallest_B1, sorted_BV, -jnp.inf)
        logit_BV = jnp.where(logit_BV >= smallest_B1, logit_BV, -jnp.inf)
    return logit_BV


# ---- rules


def repetition_penalty(logit_BV, penalty_B1, counts):
    """Keskar et al. 2019: the logit of a token in prompt or text, over the penalty if positive, else times it."""
    repeated_BV = jnp.where(logit_BV > 0, logit_BV / penalty_B1, logit_BV * penalty_B1)
    return jnp.where(counts.seen_BV, repeated_BV, logit_BV)


def frequency_penalty(logit_BV, penalty_B1, counts):
    """OpenAI's API: less the penalty for each time the token is in the text."""
    return logit_BV - penalty_B1 * counts.count_BV


def presence_penalty(logit_BV, penalty_B1, counts):
    """OpenAI's API: less the penalty if the token is in the text."""
    return logit_BV - penalty_B1 * (counts.count_BV > 0)


def temperature(logit_BV, temperature_B1, counts):
    return logit_BV / jnp.maximum(temperature_B1, 1e-6)


# ---- cuts. The likeliest token always stays.


def top_k(sorted_BV, k_B1):
    """The k-th largest logit."""
    return jnp.take_along_axis(sorted_BV, jnp.minimum(k_B1, sorted_BV.shape[-1]) - 1, axis=-1)


def top_p(sorted_BV, p_B1):
    """Holtzman et al. 2020: the last of the largest logits that reach a total probability of p."""
    probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV  # probability of all larger logits
    last_B1 = jnp.maximum((before_BV < p_B1).sum(-1, keepdims=True), 1) - 1
    return jnp.take_along_axis(sorted_BV, last_B1, axis=-1)


def min_p(sorted_BV, p_B1):
    """Nguyen et al. 2024: the logit of a token p times as likely as the likeliest."""
    return sorted_BV[:, :1] + jnp.log(p_B1)
