"""Log-probabilities in the two shapes that clients know: of chats, and of plain completions."""

import codecs

from gptjax.serve.api.answering import Text


def spelled(tokenizer, token: int) -> bytes:
    """The UTF-8 of a token; of a control token, that of its name."""
    return tokenizer.spelling[token] or _names(tokenizer).get(token, "").encode()


def shown(tokenizer, token: int) -> str:
    """The text of a token; of one that is part of a character "bytes:\\\\xe2\\\\x80", so that no two look the same."""
    content = spelled(tokenizer, token)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _names(tokenizer) -> dict[int, str]:
    return {i: name for name, i in tokenizer.special.items()}


def of_chat(tokenizer, tokens, logprobs, likeliest, count: int) -> dict:
    """choices[].logprobs of a chat's tokens. count: how many of the likeliest at each place."""
    content = []
    for i, (token, logprob) in enumerate(zip(tokens, logprobs)):
        top = [_entry(tokenizer, *pair) for pair in likeliest[i][:count]] if count else []
        content.append(_entry(tokenizer, token, logprob) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def _entry(tokenizer, token: int, logprob: float) -> dict:
    return {"token": shown(tokenizer, token), "logprob": logprob, "bytes": list(spelled(tokenizer, token))}


class Offsets:
    """Where each token of a text begins, in characters."""

    def __init__(self):
        self._decoder, self._characters = codecs.getincrementaldecoder("utf-8")("replace"), 0

    def of(self, content: bytes) -> int:
        """Where the next token begins, which spells this."""
        start = self._characters
        self._characters += len(self._decoder.decode(content))
        return start


def of_completion(tokenizer, tokens, logprobs, likeliest, count: int, offsets: Offsets, named: int = 0) -> dict:
    """choices[].logprobs of plain tokens; logprobs and likeliest are None of a first one that nothing stands before.

    count: how many of the likeliest at each place; the token itself is among them always. named: of how many tokens the
    text has the names where they are control tokens: those of a prompt that was given in ids."""
    tops = []
    for token, logprob, top in zip(tokens, logprobs, likeliest):
        chosen = {} if logprob is None else {shown(tokenizer, i): value for i, value in (top or ())[:count]}
        tops.append(None if logprob is None else chosen | {shown(tokenizer, token): logprob})
    return {
        "tokens": [shown(tokenizer, token) for token in tokens],
        "token_logprobs": list(logprobs),
        "top_logprobs": tops,
        "text_offset": [
            offsets.of(spelled(tokenizer, token) if i < named else tokenizer.spelling[token])
            for i, token in enumerate(tokens)
        ],
    }


def with_prompt(text: Text, lead: int) -> tuple[list, list, list]:
    """(tokens, logprobs, likeliest) of a prompt without its `lead` tokens and of what follows it."""
    prompt = text.job.prompt_L.tolist()
    none = [None] * len(prompt)
    scores = text.prompt
    logprobs = none if scores is None else [None, *scores.logprobs]
    likeliest = none if scores is None or not scores.likeliest else [None, *scores.likeliest]
    padded = text.likeliest or [()] * len(text.tokens)
    return prompt[lead:] + text.tokens, logprobs[lead:] + text.logprobs, likeliest[lead:] + padded
