"""The distribution that tokens are drawn from, in the trainer: what a policy is, under temperature, top-k, top-p and min-p.

A policy gradient is of the distribution that was sampled. Temperature and cuts are part of it, and so is what a tokenizer
has no entry for: log-probabilities of the plain softmax of another are those of a policy that nobody ran. The rules and cuts
here are generation's own (generation/sampling.py), so that rollout and trainer agree to rounding.

Axes: B rows, L tokens, T = L + 1, D width, V padded vocabulary, v entries of a part of it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from gptjax.errors import UserError
from gptjax.generation import sampling as rules
from gptjax.generation.settings import OPTIONS, Settings
from gptjax.models import loss, placed

# Log-probability of a token that the distribution has no longer, such as one of an older policy outside today's top-p. Its
# probability is exactly 0 in float32, and its gradient 0; -inf would make NaN of a weight 0.
CUT_LOGPROB = -1e4
INPUTS = ("token_BT", "segment_BT", "position_BL")  # of a batch, that the model takes
LOGITS_AT_A_TIME = 2**24  # float32 numbers, where they have to be sorted


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are drawn. None: off.

    temperature=0 takes the likeliest token, for evaluation: each has log-probability 0, and there is no gradient.
    Raises UserError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    max_tokens: int = 256  # of an answer, its end token included
    entries: int | None = None  # of the vocabulary that can be drawn: as many as the tokenizer has; None: all

    def __post_init__(self):
        for name, value in self._options.items():
            if value is not None and not OPTIONS[name].valid(value):
                raise UserError(f"{name}={value} {OPTIONS[name].expected}")
        for name in ("max_tokens", "entries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} is too small; use at least 1.")

    @property
    def _options(self) -> dict:
        return {name: getattr(self, name) for name, option in OPTIONS.items() if option.drawing and hasattr(self, name)}

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def cuts(self) -> bool:
        """Whether some tokens are never drawn, by a rule that sorts them."""
        return any(OPTIONS[name].cut is not None and OPTIONS[name].in_use(v) for name, v in self._options.items())

    @property
    def uncut(self) -> "Sampling":
        """The same without cuts: what a divergence from another model is measured in, which may say what this cuts."""
        return dataclasses.replace(self, **{name: None for name in self._options if OPTIONS[name].cut is not None})

    def settings(self, **others) -> Settings:
        """Of generation, that draw so."""
        return Settings(**self._options, max_tokens=self.max_tokens, **others)


def token_logprobs(params, batch: dict, *, graph, config, sampling: Sampling, key=None):
    """(log-probability of each next token in nats, entropy of the distribution it is drawn from in nats), [B, L] float32.

    batch: token_BT, and segment_BT and position_BL of packed rows; whatever else it has is left alone. Both numbers stand at
    every position: a loss weighs them. Both have gradients. key: of dropout; None: none is dropped.
    A token that the distribution has not has CUT_LOGPROB. Raises UserError: temperature 0.
    """
    if sampling.greedy:
        raise UserError(
            "temperature=0 has no policy gradient: its likeliest token is certain; use a temperature above 0."
        )
    logprob_BL, entropy_BL, _ = placed.token_loss(
        params,
        {name: batch[name] for name in INPUTS if name in batch},
        graph=graph,
        mesh_config=config.mesh,
        chunks=config.train.vocab_chunks,
        key=key if config.model.max_dropout else None,
        head=head(sampling),
    )
    return logprob_BL, entropy_BL


def of_logits(logit_BV, target_B, sampling: Sampling):
    """(log-probability, entropy) of a token of each row, [B] float32, from the model's logits."""
    logit_BV = logit_BV if sampling.entries is None else loss.mask_padding(logit_BV, sampling.entries)
    value_B = rules.values([sampling.settings()], 1)
    value_B = {name: jnp.broadcast_to(value, logit_BV.shape[:1]) for name, value in value_B.items()}
    drawing = [named for named in rules.table() if named[1].drawing]
    # Which tokens are cut is no function of the parameters: their gradient is of what is left.
    left_BV = jnp.isfinite(rules.apply(drawing, jax.lax.stop_gradient(logit_BV), value_B))
    tempered_BV = rules.temperature(logit_BV, value_B["temperature"][:, None], None)
    finite_BV = jnp.where(left_BV, tempered_BV, 0)
    log_normaliser_B = jax.nn.logsumexp(jnp.where(left_BV, tempered_BV, -jnp.inf), axis=-1)
    probability_BV = jnp.where(left_BV, jnp.exp(finite_BV - log_normaliser_B[:, None]), 0)
    is_target_BV = jnp.arange(logit_BV.shape[-1]) == target_B[:, None]
    logprob_B = jnp.where(is_target_BV, finite_BV, 0).sum(-1) - log_normaliser_B
    was_left_B = (is_target_BV & left_BV).any(-1)
    return jnp.where(was_left_B, logprob_B, CUT_LOGPROB), log_normaliser_B - (probability_BV * finite_BV).sum(-1)


def head(sampling: Sampling):
    """What LanguageModel.token_loss makes of final activations, output matrix and targets."""

    def head(x_BLD, head_VD, target_BL, *, vocab_size: int, chunks: int, softcap):
        vocab_size = min(sampling.entries or vocab_size, vocab_size)
        if sampling.cuts:
            return _sorted(x_BLD, head_VD, target_BL, dataclasses.replace(sampling, entries=vocab_size), softcap)
        return _tempered(x_BLD, head_VD, target_BL, sampling.temperature, vocab_size, chunks, softcap)

    return head


def _tempered(x_BLD, head_VD, target_BL, temperature: float, vocab_size: int, chunks: int, softcap):
    """Both numbers of softmax(logits / temperature), with the logits of one part of the vocabulary at a time."""

    def add(carry, part):
        log_normaliser_BL, target_logit_BL, mean_BL = carry
        head_vD, entry_v = part
        logit_BLv = loss.part_logits(x_BLD, head_vD, entry_v, vocab_size, softcap)
        logit_BLv = rules.temperature(logit_BLv, temperature, None)
        finite_BLv = jnp.where(entry_v < vocab_size, logit_BLv, 0)
        of_part_BL = jax.nn.logsumexp(logit_BLv, axis=-1)
        mean_of_part_BL = (jnp.exp(logit_BLv - of_part_BL[..., None]) * finite_BLv).sum(-1)
        total_BL = jnp.logaddexp(log_normaliser_BL, of_part_BL)
        mean_BL = jnp.exp(log_normaliser_BL - total_BL) * mean_BL + jnp.exp(of_part_BL - total_BL) * mean_of_part_BL
        target_logit_BL = target_logit_BL + jnp.where(entry_v == target_BL[..., None], finite_BLv, 0).sum(-1)
        return (total_BL, target_logit_BL, mean_BL), None

    zero_BL = jnp.zeros(target_BL.shape, jnp.float32)
    # Of several parts, logits are computed again in the backward pass. A barrier between both would stop fusion.
    add = add if chunks == 1 else jax.checkpoint(add, prevent_cse=False)
    start = (jnp.full(target_BL.shape, -jnp.inf, jnp.float32), zero_BL, zero_BL)
    (log_normaliser_BL, target_logit_BL, mean_BL), _ = jax.lax.scan(add, start, loss.parts(head_VD, chunks))
    return target_logit_BL - log_normaliser_BL, log_normaliser_BL - mean_BL


def _sorted(x_BLD, head_VD, target_BL, sampling: Sampling, softcap):
    """Both numbers under cuts, which need all logits of a token at once: of some positions of all rows at a time."""

    @jax.checkpoint
    def of_position(args):
        x_BD, target_B = args
        return of_logits(loss.logits(x_BD, head_VD, softcap), target_B, sampling)

    rows, length = target_BL.shape
    positions = min(length, max(1, LOGITS_AT_A_TIME // (rows * head_VD.shape[0])))
    args = (x_BLD.swapaxes(0, 1), target_BL.swapaxes(0, 1))
    logprob_LB, entropy_LB = jax.lax.map(of_position, args, batch_size=positions)
    return logprob_LB.T, entropy_LB.T
