"""Whether a run may go on under a changed config, and the commands that allow it or make a finished run longer.

`training.main` loads this only where there is a run to go on with. Steps are named as the log names them, from 1.
"""

import shlex
import types

from gptjax import schedule
from gptjax.config import changes, removed
from gptjax.errors import UserError, did_you_mean
from gptjax.rundir import run_directory

ALLOW = "--allow_change"


def asked(text: str) -> tuple[str, ...]:
    """What --allow_change names: fields, or whole sections. Raises UserError: a name that is neither."""
    names = tuple(filter(None, text.split(",")))
    known = [*changes.words(), *removed.REMOVED, *dict.fromkeys(key.partition(".")[0] for key in changes.words())]
    for name in names:
        if name not in known:
            near = did_you_mean(name, known, "; expected SECTION.FIELD or SECTION, as in train.steps or data")
            raise UserError(f"{ALLOW}={text}: a config has no field {name!r}{near}")
    return names


def check(directory, config, store, allowed: tuple[str, ...]) -> None:
    """Raises UserError: the run in a RunDirectory cannot go on with this config, or with the text of this TokenStore."""
    steps = directory.steps()
    gone, taken = directory.removed_fields(), steps[-1] if steps else 0
    total, field = schedule.total_steps(config), "tokens" if config.train.steps is None else "steps"
    if total < taken:
        raise UserError(
            f"this run has taken {taken:,} steps, and train.{field}={getattr(config.train, field):g} ends it at step {total:,}:"
            f" steps cannot be taken back. Give at least so many, or use a new --workdir; --branch_from={directory.path}"
            f" --branch_step=N begins another run with a checkpoint of this one."
        )
    check_resume(directory.config(), config, allowed, gone, taken)
    directory.check_tokenizer(store.tokenizer)
    before = directory.fingerprint()
    if before != store.fingerprint and "data" not in allowed:
        raise UserError(
            f"the text or tokenizer is not the one that this run was started with (fingerprint {before[:12]}, now"
            f" {store.fingerprint[:12]}). Restore the text, or use a new --workdir. To continue with the other text,"
            f" {adding([*allowed, 'data'])}"
        )


def check_resume(
    old, new, allowed: tuple[str, ...] = (), gone: dict[str, tuple] = types.MappingProxyType({}), taken: int = 0
) -> None:
    """Raises UserError if a run made with config `old` cannot go on with `new`, naming every key in the way.

    gone: `removed_fields` of the run. taken: steps that the run has a checkpoint of.
    allowed: keys or sections the user lets change, beside those that a resume accepts unasked.
    """
    telling = {key: values for key, values in changes.differing(old, new).items() if not changes.word(key).resume}
    refused = {key: values for key, values in {**telling, **gone}.items() if not changes.is_named(key, allowed)}
    if refused:
        shown = ", ".join(f"{key} ({before!r} -> {after!r})" for key, (before, after) in refused.items())
        rate = rate_change(old, new, taken)
        raise UserError(
            f"this run was started with another config: {shown}. To start another run, use a new --workdir. To continue"
            f" this one{f' ({rate})' if rate else ''}, {adding([*allowed, *refused])}"
        )


def adding(keys) -> str:
    """ "add --allow_change=KEYS: COMMAND", the user's own; without a command where none of `gptjax train` was typed."""
    flag = f"{ALLOW}={','.join(keys)}"
    words = run_directory.command_line()
    if words[1:2] != ["train"]:
        return f"add {flag}."
    return f"add {flag}: {with_flags(words, {ALLOW: ','.join(keys)})}"


def with_flags(words: list[str], flags: dict[str, str]) -> str:
    """A command line as a shell takes it, with these flags behind it; those that it gave before are left out."""
    waiting, kept = list(words), []
    while waiting:
        word = waiting.pop(0)
        name, equals, _ = word.partition("=")
        if name not in flags:
            kept.append(word)
        elif not equals and waiting:
            del waiting[0]  # its value, as a word of its own
    return shlex.join([*kept, *(f"{flag}={value}" for flag, value in flags.items())])


def rate_change(old, new, taken: int) -> str:
    """How the learning rate goes on after so many steps where it would have gone on otherwise; else ""."""
    if not 0 < taken < schedule.total_steps(new):
        return ""
    try:
        before, planned = (schedule.learning_rate(old, step) for step in (taken - 1, taken))
    except UserError:  # a schedule that was in the table when the run began
        return ""
    after = schedule.learning_rate(new, taken)
    if after == planned:
        return ""
    said = f"its learning rate is {before:.3g} at step {taken:,} and will be {after:.3g} at step {taken + 1:,}"
    end = schedule.total_steps(old)
    if not _keeps_its_end(new, end, taken, planned):
        return said
    return (
        f"{said}, since the decay then ends at step {schedule.total_steps(new):,};"
        f" --config.optim.decay_steps={end}, with optim.decay_steps in {ALLOW} too, lets the decay end where it did"
    )


def _keeps_its_end(new, end: int, taken: int, planned: float) -> bool:
    """Whether the rate would go on as planned if the decay ended at step `end`, as it did."""
    if new.optim.decay_steps is not None or new.optim.decay_tokens is not None:
        return False
    return schedule.learning_rate(new.replace(optim={"decay_steps": end}), taken) == planned


def finished(config) -> list[str]:
    """Lines for a run that has taken all its steps when its command is given again: how it is made longer."""
    steps, field = schedule.total_steps(config), "tokens" if config.train.steps is None else "steps"
    longer = 2 * getattr(config.train, field)
    flags = {f"--config.train.{field}": str(longer), ALLOW: f"train.{field}"}
    words = run_directory.command_line()
    command = with_flags(words, flags) if words[1:2] == ["train"] else with_flags([], flags)
    rate = rate_change(config, config.replace(train={field: longer}), steps)
    lines = [
        f"finished   this run has already taken all its {steps:,} steps; there is nothing left to train",
        f"           to make the run longer, for example {longer:,} {field}: {command}",
    ]
    return lines + [f"           {rate[0].upper()}{rate[1:]}."] if rate else lines
