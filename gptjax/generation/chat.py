"""Conversations to answers: a prompt of a chat format, and generation until a token that ends a turn.

A format is one of data.chat: it says how messages are written, and which tokens end an answer.
"""

import dataclasses

from gptjax.errors import UserError
from gptjax.generation import text


def answers(engine, tokenizer, form, conversations, settings, callback=None) -> list[text.Completion]:
    """Completions of each conversation, as `text.generate`: num_return_sequences of the first, of the second, ... Their
    prompt is shown with its control tokens.

    conversations: tuples of messages, each to be answered.
    Raises UserError: a conversation that leaves no room in the context, which would lose its beginning unseen.
    """
    prompts = [form.prompt(messages, tokenizer) for messages in conversations]
    for ids in prompts:
        check_fits(ids, engine.config.context_length)
    stop_ids = form.stop_ids(tokenizer)
    completions = text.generate(engine, tokenizer, prompts, settings, callback, stop_ids)
    count = len(completions) // len(prompts)
    shown = [tokenizer.decode(ids, special=True) for ids in prompts for _ in range(count)]
    return [dataclasses.replace(each, prompt=prompt) for each, prompt in zip(completions, shown, strict=True)]


def check_fits(ids, context_length: int) -> None:
    """Raises UserError: a prompt fills the context."""
    if len(ids) >= context_length:
        raise UserError(
            f"the conversation has {len(ids)} tokens, which leave no room for an answer in a context of {context_length};"
            " leave out its oldest messages."
        )
