"""Text of a run under a constraint, a token at a time: the mask becomes a bias of the logits that the engine draws from."""

import jax.numpy as jnp
import numpy as np

from gptjax.generation.engine import Engine, Row, wanted_of
from gptjax.generation.settings import Settings
from gptjax.parallel import numerics


@numerics.settings()
def say(run, prompt_L, constraint, seed: int, max_tokens: int, **settings) -> tuple[str, str]:
    """(text, how it ended: eot or length)."""
    engine: Engine = run.engine
    row = Row(np.asarray(prompt_L, np.int32), seed, Settings(max_tokens=max_tokens, **settings), run.tokenizer.eot_id)
    state, pad_B = engine.prefill([row], places_for=max_tokens, with_counts=False)
    wanted = wanted_of([row], len(pad_B))._replace(pad_B=pad_B)
    while row.finished is None:
        allowed_V = np.zeros(state.logit_BV.shape[1], bool)
        allowed_V[: run.tokenizer.vocab_size] = constraint.allowed()
        state = state._replace(logit_BV=jnp.where(allowed_V, state.logit_BV, -jnp.inf))
        state = engine.decode([row], wanted, state, 1, logprobs=None)
        constraint.take(row.ends[0] if row.finished == "eot" else row.new[-1])
    return run.tokenizer.decode(row.new), row.finished
