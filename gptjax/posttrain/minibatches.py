"""From the answers of an iteration to the arrays of one call of the train step: passes over them, in minibatches.

Axes: S minibatches of a call, B answers of one, R answers of an iteration.
"""

import numpy as np

from gptjax.data.rows.hashing import permute

ORDER_STREAM = 0x6D696E69  # of the order of answers, apart from that of the prompts, which has the same seed


def order(config, iteration: int) -> np.ndarray:
    """int64 [S, B]: which of the R answers are in each minibatch; each answer once in each of rl.epochs passes, in an order
    that is a function of (data.seed, iteration, pass)."""
    epochs, batch_size, steps = config.rl.epochs, config.train.batch_size, config.train.steps_per_call
    answers = batch_size * steps // epochs
    passes = [
        permute(np.arange(answers), answers, config.data.seed ^ ORDER_STREAM, iteration * epochs + number)
        for number in range(epochs)
    ]
    return np.concatenate(passes).reshape(steps, batch_size)


def arrays(of_answers: dict[str, np.ndarray], order_SB: np.ndarray) -> dict[str, np.ndarray]:
    """{name: [S, B, ...]} of arrays [R, ...]."""
    return {name: array[order_SB] for name, array in of_answers.items()}
