"""What a Config with reinforcement learning (rl.prompts) may be, and that no other one has fields of it."""

import dataclasses
import re

from gptjax.errors import UserError, shorten

TERM = re.compile(r"(?:(?P<weight>[-+.\deE]+)\s*\*)?\s*(?P<name>\S.*)", re.DOTALL)


def check(config) -> None:
    """Raises UserError for the first value that cannot work."""
    rl, train = config.rl, config.train
    if rl.prompts is None:
        _check_unused(rl)
        return
    for name in ("group", "epochs", "max_tokens", "slots", "top_k", "ptx_rows", "eval_prompts", "problems"):
        _check_least(rl, name, 1)
    for name in ("temperature", "redraws", "unended_penalty", "shown", "kl_coef"):
        _check_least(rl, name, 0)
    if rl.top_p is not None and not 0 < rl.top_p <= 1:
        raise UserError(f"rl.top_p={rl.top_p} is not in (0, 1]; None is off.")
    if rl.temperature == 0:
        raise UserError("rl.temperature=0 samples one answer only, which nothing can be learnt from; use 1.")
    if rl.max_tokens >= config.model.context_length:
        raise UserError(
            f"rl.max_tokens={rl.max_tokens} leaves no room for a prompt in model.context_length={config.model.context_length};"
            " use fewer."
        )
    if rl.tools is not None and config.data.chat is None:
        raise UserError(f"rl.tools={shorten(repr(rl.tools), 80)} are called in conversations; set data.chat.")
    if rl.rewards is None:
        raise UserError("rl.prompts has no rewards; set rl.rewards, such as 'numeric'.")
    reward_weights(rl.rewards)
    if rl.ptx is None and rl.ptx_rows is not None:
        raise UserError(f"rl.ptx_rows={rl.ptx_rows} is of rl.ptx, which is None; set both, or neither.")
    _check_iteration(config)
    _check_rest(config, train)


def _check_least(rl, name: str, least: int) -> None:
    value = getattr(rl, name)
    if value is not None and value < least:
        raise UserError(f"rl.{name}={value} is too small; use at least {least}.")


def _check_unused(rl) -> None:
    for field in dataclasses.fields(rl):
        value = getattr(rl, field.name)
        if value != field.default:
            raise UserError(
                f"rl.{field.name}={shorten(repr(value), 80)} is of reinforcement learning, but rl.prompts is None; set rl.prompts,"
                " or leave it out."
            )


def _check_iteration(config) -> None:
    """Raises UserError: answers, groups, epochs and minibatches of an iteration do not come out even."""
    rl, train = config.rl, config.train
    if train.steps_per_call % rl.epochs:
        raise UserError(
            f"train.steps_per_call={train.steps_per_call} is no multiple of rl.epochs={rl.epochs}: an iteration is one call, so"
            f" many passes over its answers; use train.steps_per_call={-(-train.steps_per_call // rl.epochs) * rl.epochs}."
        )
    answers = answers_of(config)
    if answers % rl.group:
        raise UserError(
            f"train.batch_size={train.batch_size} * train.steps_per_call={train.steps_per_call} / rl.epochs={rl.epochs} ="
            f" {answers} answers are no multiple of rl.group={rl.group}; use a group that divides them, or another"
            " train.batch_size."
        )


def answers_of(config) -> int:
    """Answers that an iteration samples."""
    return config.train.batch_size * config.train.steps_per_call // config.rl.epochs


def _check_rest(config, train) -> None:
    for is_set, key, why in (
        (train.batch_ramp_start is not None, "train.batch_ramp_start", "an iteration has one size"),
        (train.epochs is not None, "train.epochs", "prompts are no text; give train.steps"),
        (config.data.task is not None, "data.task", "labelled examples are not sampled"),
        (config.data.mixture is not None, "data.mixture", "prompts come from rl.prompts, text from rl.ptx"),
        (config.data.source != "corpus" or config.data.path is not None, "data.source", "prompts come from rl.prompts"),
        (config.data.chat_loss != "assistant", "data.chat_loss", "answers are learnt from their rewards"),
        (config.data.chat_overflow == "cut", "data.chat_overflow", "a prompt without its end asks something else"),
        (train.loss == "next_token", "train.loss", "it learns no rewards; use 'grpo' or 'ppo'"),
    ):
        if is_set:
            raise UserError(f"{key} does not go with rl.prompts: {why}; leave it out, or change it.")


def reward_weights(text: str) -> dict[str, float]:
    """{reward: weight} of "0.5*NAME(...) + NAME", in the order they are written. Raises UserError: it cannot be read."""
    weights = {}
    for term in _terms(text):
        match = TERM.fullmatch(term.strip())
        weight = None if match is None else _number(match["weight"])
        if weight is None or match["name"] in weights:
            raise UserError(
                f"rl.rewards={shorten(repr(text), 80)} cannot be read at {shorten(repr(term.strip()), 40)}; expected each reward"
                " once, as NAME or WEIGHT*NAME(PARAMETER=VALUE), with + between."
            )
        weights[match["name"].strip()] = weight
    return weights


def _number(text: str | None) -> float | None:
    """Of a weight, 1 where there is none; None: it is no number."""
    try:
        return 1.0 if text is None else float(text)
    except ValueError:
        return None


def _terms(text: str) -> list[str]:
    """The parts between the +'s that stand in no bracket and no quote."""
    parts, depth, quote = [""], 0, None
    for character in text:
        if quote:
            quote = None if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "+" and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts
