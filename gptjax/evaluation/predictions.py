"""What the outputs of a task head say of an example: probabilities, classes of words, an answer, numbers. In NumPy.

Axes: L length, O outputs of the head, C sequences of the example, K classes, W words.
"""

import numpy as np

from gptjax.data.examples.task import Example


def class_probabilities(output_O, example: Example) -> np.ndarray:
    """Float64 [K]: the probability of each class, or of each sequence of a choice."""
    exp_O = np.exp(np.float64(output_O) - np.max(output_O))
    return exp_O / exp_O.sum()


def token_classes(output_LO, example: Example) -> np.ndarray:
    """int64 [W]: the class of each token that has a label."""
    return output_LO[example.place_W].argmax(-1)


def likeliest_span(output_LO, example: Example) -> tuple[int, int, float]:
    """(first token, last token, probability) of the likeliest span within the context."""
    length = len(example.sequences[0])
    start_L, end_L = (class_probabilities(output_LO[:length, i], example) for i in range(2))
    first, last = example.place_W
    start_L, end_L = start_L[first : last + 1], end_L[first : last + 1]
    best_start_L = np.maximum.accumulate(start_L)
    end = int(np.argmax(best_start_L * end_L))
    start = int(np.argmax(start_L[: end + 1]))
    return int(first) + start, int(first) + end, float(start_L[start] * end_L[end])


def answer_text(example: Example, span: tuple[int, int, float], tokenizer) -> str:
    first, last, _ = span
    return tokenizer.decode(example.sequences[0][first : last + 1]).strip()


READ = {
    "classify": class_probabilities,
    "choice": lambda output_C, example: class_probabilities(output_C[: len(example.sequences)], example),
    "tag": token_classes,
    "span": likeliest_span,
    "regress": lambda output_O, example: np.float64(output_O),
}
"""Of each loss a function (outputs of an example, the example) -> what they say."""
