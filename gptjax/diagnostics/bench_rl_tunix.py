"""tunix's side of `gptjax bench --rl --tunix=PYTHON`: its GRPOLearner in an interpreter that has google-tunix.

As a module of gptjax it has `Theirs`. As a script, which that interpreter runs and which imports nothing of gptjax, it takes
what to measure as a line of JSON, prints "ready", and then answers each line with the seconds of an iteration.
"""

import json
import os
import subprocess
import sys
import time


class Theirs:
    """Iterations of GRPOLearner, which does not tell how long its answers took.

    Raises UserError: tunix has no model of this shape, or its interpreter does not start.
    """

    def __init__(self, config, prompt_ids: list[list[int]], loss, end_id: int, python: str):
        from gptjax.errors import UserError

        wanted = _wanted(config, prompt_ids, loss, end_id)
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        try:
            self._child = subprocess.Popen([python, __file__], text=True, **pipes)
        except OSError as error:
            raise UserError(f"--tunix={python}: {error.strerror}; give the Python that has google-tunix.") from error
        if self._answer(json.dumps(wanted)) != "ready":
            raise _failed(self._child)

    def step(self) -> None:
        if not self._answer("step"):
            raise _failed(self._child)

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()

    def _answer(self, line: str) -> str:
        try:
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            return ""
        return self._child.stdout.readline().strip()


def _failed(child):
    from gptjax.errors import UserError, shorten

    child.kill()
    return UserError(f"--tunix: its interpreter ended: {shorten(child.communicate()[1][-500:], 500)}")


def _wanted(config, prompt_ids: list[list[int]], loss, end_id: int) -> dict:
    """What the script measures. Raises UserError: tunix has no model of this shape."""
    from gptjax.config import rl_checks
    from gptjax.errors import UserError

    model, rl, train = config.model, config.rl, config.train
    if (model.norm, model.mlp, model.bias, model.position) != ("rmsnorm", "swiglu", False, "rope"):
        raise UserError(
            "--tunix has no model of this shape; give a Llama's: model.norm=rmsnorm, model.mlp=swiglu, model.bias=False,"
            " model.position=rope."
        )
    count = rl_checks.answers_of(config) // rl.group
    return {
        "shape": {
            "num_layers": model.n_layers,
            "vocab_size": model.vocab_size,
            "embed_dim": model.d_model,
            "hidden_dim": model.ff_size,
            "num_heads": model.n_heads,
            "head_dim": model.head_size,
            "num_kv_heads": model.kv_heads,
            "rope_theta": model.rope_theta,
            "norm_eps": model.norm_eps,
            "weight_tying": model.tied_head,
        },
        "prompts": [" ".join(map(str, ids)) for ids in prompt_ids],
        "count": count,
        "minibatch": train.batch_size // rl.group,
        "prompt_length": max(map(len, prompt_ids)),
        "answer_length": rl.max_tokens,
        "end_id": end_id,
        "group": rl.group,
        "epochs": rl.epochs,
        "beta": loss.beta,
        "temperature": rl.temperature,
        "learning_rate": config.optim.peak_lr,
    }


# ---- the script


class Words:
    """A tokenizer whose words are the numbers of tokens."""

    def __init__(self, end_id: int):
        self._end_id = end_id

    def encode(self, text, **_):
        return [int(word) for word in text.split()]

    def decode(self, ids, **_):
        return " ".join(map(str, ids))

    def bos_id(self):
        return self._end_id

    def eos_id(self):
        return self._end_id

    def pad_id(self):
        return 0 if self._end_id else 1


def learner_of(wanted: dict):
    import jax
    import numpy as np
    import optax
    from flax import nnx
    from tunix.models.llama3 import model as llama3
    from tunix.rl import rl_cluster
    from tunix.rl.grpo import grpo_learner
    from tunix.rl.rollout import base_rollout

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    with mesh:
        policy, reference = (llama3.Llama3(llama3.ModelConfig(**wanted["shape"]), rngs=nnx.Rngs(0)) for _ in range(2))
    prompt_length, answer_length, role = wanted["prompt_length"] + 1, wanted["answer_length"], rl_cluster.Role
    cluster = rl_cluster.RLCluster(
        actor=policy,
        reference=reference if wanted["beta"] else None,
        tokenizer=Words(wanted["end_id"]),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys((role.ACTOR, role.REFERENCE, role.ROLLOUT), mesh),
            rollout_engine="vanilla",
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adamw(wanted["learning_rate"]),
                eval_every_n_steps=10**9,
                max_steps=10**9,
                mini_batch_size=wanted["minibatch"],
                train_micro_batch_size=wanted["minibatch"],
                rollout_micro_batch_size=wanted["count"],
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=answer_length,
                temperature=wanted["temperature"],
                max_prompt_length=prompt_length,
                kv_cache_size=prompt_length + answer_length + 8,
                eos_tokens=[wanted["end_id"]],
            ),
        ),
    )
    config = grpo_learner.GRPOConfig(
        num_generations=wanted["group"], num_iterations=wanted["epochs"], beta=wanted["beta"]
    )
    return grpo_learner.GRPOLearner(
        rl_cluster=cluster,
        algo_config=config,
        reward_fns=lambda prompts, completions, **_: [float(len(set(text.split()))) for text in completions],
    )


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    wanted = json.loads(sys.stdin.readline())
    import numpy as np

    learner, prompts, count = learner_of(wanted), wanted["prompts"], wanted["count"]

    def batches():
        first, began = 0, None
        while True:
            print("ready" if began is None else time.perf_counter() - began, file=answers)
            if not sys.stdin.readline():
                return
            began = time.perf_counter()
            yield {"prompts": np.array([prompts[(first + i) % len(prompts)] for i in range(count)])}
            first += count

    learner.train(batches())


if __name__ == "__main__":
    main()
