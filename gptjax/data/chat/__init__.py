"""Conversations to tokens: one function from messages to (ids, weights), for training, evaluation, sampling and the server.

    format = chat_format("chatml")                            # gptjax, chatml, llama3, smollm2, or template:FILE
    token_L, weight_L = format.render(conversation, tokenizer)    # weight_L[t]: of token t as a target of the loss
    prompt_L = format.prompt(messages, tokenizer)             # what generation continues, until one of format.stop_ids

    conversation    messages, checked, and the records that they are read from
    calls           tools that an assistant may call, and its calls, as text
    forms           the forms of records: OpenAI's, prompt and completion, Alpaca's, ShareGPT's
    base            what formats have in common: pieces of text and control tokens, and their tokens and weights
    formats         the named formats
    template        a format written in Jinja, as Hugging Face renders it
    environment     Jinja as Hugging Face sets it up
    marking         the text of messages kept from spelling a control token of a template
    kinds           the format that a config or a run names; templates on disk

Control tokens go by id. A text that spells one is encoded as the text it is, in every format.
"""

from gptjax.data.chat.base import Format, Rendered
from gptjax.data.chat.conversation import Conversation, Message, from_record, parse_messages
from gptjax.data.chat.kinds import chat_format

__all__ = ["Conversation", "Format", "Message", "Rendered", "chat_format", "from_record", "parse_messages"]
