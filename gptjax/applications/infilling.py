"""A gap in a text, as the prompt of a model that was trained to fill it (data.objective=fim, or another's)."""

import numpy as np

from gptjax.data.rows import infilling
from gptjax.errors import UserError

SYMBOLS = (  # prefix, suffix, middle
    (infilling.PREFIX, infilling.SUFFIX, infilling.MIDDLE),  # gptjax, Qwen2.5-Coder
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
)


def prompt_ids(tokenizer, prefix: str, suffix: str) -> np.ndarray:
    """int32 [L]: what a model goes on from with the middle, in the order prefix, suffix, middle that its pieces were rearranged
    to in training (Bavarian et al. 2022, section 3: PSM). Raises UserError: its tokenizer has no symbols for that."""
    for names in SYMBOLS:
        if all(name in tokenizer.special for name in names):
            before, behind, middle = (np.array([tokenizer.special[name]], np.int32) for name in names)
            texts = [tokenizer.encode(text) if text else np.zeros(0, np.int32) for text in (prefix, suffix)]
            start = np.array([] if tokenizer.bos_id is None else [tokenizer.bos_id], np.int32)
            return np.concatenate([start, before, texts[0], behind, texts[1], middle]).astype(np.int32)
    raise UserError(
        "this model was not trained to fill a gap: its tokenizer has no <|fim_prefix|>, <|fim_suffix|> and <|fim_middle|>;"
        " use a run of data.objective=fim, or a recipe with prompt, which continues a text."
    )


def sides(text: str, gap: str) -> tuple[str, str]:
    """What stands before and behind the gap. Raises UserError: there is none, or more than one."""
    parts = text.split(gap)
    if len(parts) != 2:
        raise UserError(f"the text has {len(parts) - 1} gaps {gap}; write one where the text is to be filled in.")
    return parts[0], parts[1]
