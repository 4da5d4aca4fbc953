"""The forms of records that conversations are read from, each known by its fields.

A form is a function from a record to a list of {"role", "content"}, OpenAI's form, and one line of FORMS.
"""

from gptjax.errors import UserError, choose, shorten

_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "function_response": "tool",
    "observation": "tool",
    "tool": "tool",
}


def messages(record: dict, where: str) -> list:
    """The record's messages. Raises UserError that begins with where: no form has such fields, or this one is broken."""
    for fields, form in FORMS.items():
        if all(record.get(field) is not None for field in fields):
            return form(record, where)
    names = (f"{name!r} (null)" if value is None else repr(name) for name, value in record.items())
    names = shorten(", ".join(names), 300) or "none"
    expected = "; ".join(" and ".join(fields) for fields in FORMS)
    raise UserError(f"{where} is no conversation: it has the fields {names}; expected one of: {expected}.")


def openai(record: dict, where: str) -> list:
    """{"messages": [{"role", "content", "weight"}]}: OpenAI's fine-tuning form. Roles may repeat."""
    return record["messages"]


def sharegpt(record: dict, where: str) -> list:
    """{"conversations": [{"from", "value"}]}: ShareGPT's form. human and gpt alternate, and human begins."""
    turns = record["conversations"]
    if not isinstance(turns, list | tuple):
        raise UserError(f"{where}: conversations is a {type(turns).__name__}; expected a list of from and value.")
    if turns and all(isinstance(turn, dict) and "role" in turn for turn in turns):
        return list(turns)
    values = [_sharegpt_message(turn, f"{where}: message {i}") for i, turn in enumerate(turns, start=1)]
    if isinstance(record.get("system"), str) and record["system"]:
        values.insert(0, {"role": "system", "content": record["system"]})
    expected = "user"
    for i, value in enumerate(values, start=1):
        role = value["role"]
        if role in ("user", "assistant"):
            if role != expected:
                raise UserError(
                    f"{where}: message {i} ({role}) is out of place; human and gpt take turns, human first."
                )
            expected = "assistant" if role == "user" else "user"
        elif role == "tool":
            expected = "assistant"
    return values


def _sharegpt_message(turn, where: str) -> dict:
    if not isinstance(turn, dict) or not isinstance(turn.get("from"), str):
        raise UserError(f"{where} does not say from whom it is; expected an object with from and value.")
    try:
        role = choose(_SHAREGPT_ROLES, turn["from"], "from")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return {"role": role, "content": turn.get("value"), "weight": turn.get("weight")}


def prompt_completion(record: dict, where: str) -> list:
    """{"prompt", "completion"}: TRL's form, each a text or a list of messages. Only the completion is a target."""
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    for name, part in (("prompt", prompt), ("completion", completion)):
        if not isinstance(part, list | tuple):
            raise UserError(f"{where}: {name} is a {type(part).__name__}; expected a text or a list of messages.")
    return [_without_loss(value) for value in prompt] + list(completion)


def _without_loss(value):
    is_answer = isinstance(value, dict) and value.get("role") == "assistant"
    return value | {"weight": 0} if is_answer else value


def alpaca(record: dict, where: str) -> list:
    """{"instruction", "input", "output"}: Alpaca's form. The user's message is the instruction, and the input after an
    empty line where there is one; "system" may stand beside them."""
    texts = {name: record.get(name) for name in ("system", "instruction", "input", "output")}
    for name, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise UserError(f"{where}: {name} is a {type(text).__name__}; expected a text.")
    asked = texts["instruction"] + (f"\n\n{texts['input']}" if texts["input"] else "")
    system = [{"role": "system", "content": texts["system"]}] if texts["system"] else []
    answer = {"role": "assistant", "content": texts["output"]}
    return [*system, {"role": "user", "content": asked}, answer]


FORMS = {
    ("messages",): openai,
    ("conversations",): sharegpt,
    ("prompt", "completion"): prompt_completion,
    ("instruction", "output"): alpaca,
}
