"""The section `rl` of a config: how answers are sampled, scored and learnt from between two calls of the train step.

rl.prompts=None is a run without reinforcement learning. With prompts, one call of the train step is one iteration: batch_size
* steps_per_call / epochs answers are sampled with the parameters of that moment, scored, and learnt from in `epochs` passes of
steps_per_call / epochs minibatches each.
"""

import dataclasses

from gptjax.config.setting import Shown, setting


@dataclasses.dataclass(frozen=True, repr=False)
class RLConfig(Shown):
    prompts: str | None = setting(
        None, "what is answered: KIND:PATH of records, or a generator NAME(PARAMETER=VALUE); None: no RL"
    )
    problems: int = setting(10_000, "generators: prompts that there are to train on")
    rewards: str | None = setting(
        None, "what an answer is worth: WEIGHT*NAME(PARAMETER=VALUE) + ..., names of posttrain.rewards.REWARDS"
    )
    group: int = setting(8, "answers that are sampled to a prompt in an iteration")
    epochs: int = setting(1, "passes over the answers of an iteration")
    max_tokens: int = setting(128, "tokens of an answer at most, its end token included")
    temperature: float = setting(1.0, "divides the logits of what is sampled, and of what is learnt")
    top_k: int | None = setting(None, "sampling from the k likeliest tokens only; None: from all")
    top_p: float | None = setting(None, "sampling from the likeliest tokens up to this probability; None: from all")
    tools: str | None = setting(
        None,
        "what an answer may call, names of posttrain.tools.TOOLS or module:function with commas between; None: none",
    )
    slots: int | None = setting(None, "answers that are sampled at a time; None: up to 64", "rounding")
    advantage: str = setting(
        "group", "how rewards become advantages: a name of posttrain.advantages.ADVANTAGES, or NAME(PARAMETER=VALUE)"
    )
    kl_coef: float = setting(0.0, "weight of the KL to the reference in rewards; a policy loss may have one of its own")
    kl_control: str = setting(
        "fixed", "what becomes of kl_coef from iteration to iteration: fixed | adaptive(target=NATS, horizon=ANSWERS)"
    )
    reference: str | None = setting(
        "start", "model that the KL is taken to: start (this run's own) | a run directory; None: no KL"
    )
    unended_penalty: float | None = setting(
        None, "taken from the reward of an answer without an end token; None: nothing"
    )
    redraws: int = setting(
        0,
        "times that groups of equal rewards are replaced by groups of further prompts (DAPO, Yu et al. 2025); 0: kept",
    )
    ptx: str | None = setting(None, "text whose next tokens are learnt in the same steps: a SPEC; None: none")
    ptx_rows: int | None = setting(None, "rows of that text in a step; None: train.batch_size")
    eval_prompts: int | None = setting(
        None, "held-out prompts that an evaluation answers, from the first; None: all, 256 of a generator", "result"
    )
    shown: int = setting(3, "answers that are shown each eval.sample_every_steps steps", "nothing")
