"""Answers behind prompts that they do not answer: what KTO estimates its divergence from the reference by."""

import numpy as np

from gptjax.errors import UserError


def with_mismatched(examples: list, length: int) -> list:
    """Examples of data/pairs, each with a second sequence: its own prompt, and the answer of the example half the set away.

    Every answer is used once, and answers to one prompt, which often stand together, are not put behind it. The sequence is
    cut where it is longer than a row of `length` tokens. Raises UserError: there is only one example.
    """
    count = len(examples)
    if count < 2:
        raise UserError(
            "train.loss='kto' needs answers to at least 2 prompts, and the training data have 1; give more."
        )
    return [_joined(example, examples[(i + count // 2) % count], length) for i, example in enumerate(examples)]


def _joined(example, other, length: int):
    prompt_length = example.prompt_length
    token_T = np.concatenate([example.sequences[0][:prompt_length], other.sequences[0][other.prompt_length :]])
    is_target_T = np.concatenate([example.targets[0][:prompt_length], other.targets[0][other.prompt_length :]])
    return example._replace(
        sequences=(example.sequences[0], token_T[:length]), targets=(example.targets[0], is_target_T[:length])
    )
