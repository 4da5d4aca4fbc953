"""Row g of a run on preferences: the answers to one prompt, a function of the set, the seed and g, in whole epochs.

    token_BKT       int32: each answer behind its prompt, padded with 0; T = L + 1, of which the last is never filled
    length_BK       int32: tokens of each; 0: there is no such answer
    weight_BKL      float32: 1 where the token at t + 1 is a target
    score_BK        float32: higher is better, equal is a tie; the answers stand in its order, the best first
    margin_B        float32: by which scores of a reward model are to differ
    weight_B        float32: 1 of an example, 0 of padding
    prompt_length_B int32: tokens of the prompt, the same ones in each of its answers
    label_B         int32, of thumbs, where K is 1: 1 up, 0 down
    reference_BK    float32, of a loss with a reference: log-probability of each answer under it

Axes: B prompts, K answers, T = L + 1 tokens.
"""

import numpy as np

from gptjax.data.examples.rows import EvalExamples, TrainExamples
from gptjax.data.pairs.encoding import Example


def batch_of(examples: list[Example], answers: int, length: int) -> dict[str, np.ndarray]:
    """The arrays of examples, each with so many answers of so many tokens."""
    B, K, L = len(examples), answers, length
    token_BKT, weight_BKL = np.zeros((B, K, L + 1), np.int32), np.zeros((B, K, L), np.float32)
    length_BK, score_BK = np.zeros((B, K), np.int32), np.zeros((B, K), np.float32)
    for b, example in enumerate(examples):
        score_BK[b, : len(example.score_K)] = example.score_K
        for k, (token_T, is_target_T) in enumerate(zip(example.sequences, example.targets)):
            token_BKT[b, k, : len(token_T)], length_BK[b, k] = token_T, len(token_T)
            weight_BKL[b, k, : len(token_T) - 1] = is_target_T[1:]
    batch = {"token_BKT": token_BKT, "length_BK": length_BK, "weight_BKL": weight_BKL, "score_BK": score_BK}
    batch |= {"margin_B": np.array([example.margin for example in examples], np.float32)}
    batch |= {"prompt_length_B": np.array([example.prompt_length for example in examples], np.int32)}
    if examples[0].label is not None:
        batch["label_B"] = np.array([example.label for example in examples], np.int32)
    if examples[0].reference_K is not None:
        batch["reference_BK"] = np.zeros((B, K), np.float32)
        for b, example in enumerate(examples):
            batch["reference_BK"][b, : len(example.reference_K)] = example.reference_K
    return batch | {"weight_B": np.ones(B, np.float32)}


class TrainPairs(TrainExamples):
    """An endless stream of rows. store: a PairStore."""

    @property
    def examples(self) -> list[Example]:
        return self._examples

    def replace(self, examples: list[Example]) -> None:
        """Puts other examples in the places of its own, which may have more sequences, in the same rows."""
        self._examples = examples
        self.shape = (max(len(example.sequences) for example in examples), self.shape[1])

    def batch(self, examples) -> dict[str, np.ndarray]:
        return batch_of(examples, *self.shape)


class EvalPairs(EvalExamples):
    """Held-out examples in order, in `num_rows` rows; those from there on have weight 0."""

    scores = None  # (graph, params, batch) -> float32 [B, K], where answers are judged in another way than by the model's head

    def replace(self, examples: list[Example]) -> None:
        """Puts other examples of the same sequences in the places of its own."""
        self.examples = examples

    def batch(self, examples) -> dict[str, np.ndarray]:
        return batch_of(examples, *self.shape)
