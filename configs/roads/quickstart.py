"""The whole road on the text that ships with gptjax and constructed exercises.

    gptjax road configs/roads/quickstart.py --out=roads/quickstart

Hardware: two CPU cores. Nothing is fetched. What it comes to is on its page, roads/quickstart/index.html.

Source: nobody's recipe. The models are those of configs/quickstart.py; what a road of real text looks like is in small.py.
"""

from gptjax.road.road import File, Policy, Road, command, module, script, train


def get_road(
    context_length=128,
    n_layers=4,
    d_model=192,
    n_heads=6,
    vocab_size=1024,
    base_steps=600,
    sft_steps=600,
    prompts=1000,
    reward_steps=200,
    dpo_steps=100,
    ppo_steps=320,
    batch=16,
    exercises=200,
):
    shape = dict(
        context_length=context_length, n_layers=n_layers, d_model=d_model, n_heads=n_heads, scan_unroll=n_layers
    )
    pairs = dict(source="jsonl:preferences/pairs.jsonl", tokenizer="tokenizer")
    chat = dict(source="jsonl:exercises/train.jsonl", tokenizer="tokenizer")
    policy = dict(data=pairs, model=shape)
    stages = [
        script("exercises", "../../notebooks/road_exercises.py", seconds=1, tasks="reading,classification",
               first=0, train=3 * prompts, prompts=prompts, held_out=exercises),
        command("tokenizer", "tokenizer train", seconds=5, source="corpus", vocab_size=vocab_size, special="chat"),
        command("text", "prepare", ["tokenizer"], seconds=6, resumes=True, source="corpus", tokenizer="tokenizer",
                val_fraction=0.1),
        train("base", "../quickstart.py", ["text"], 180, model=shape,
              data=dict(source="prepared:text", tokenizer=None), train=dict(steps=base_steps)),
        train("sft", "../sft_quickstart.py", ["base", "exercises"], 100, model=shape, data=chat,
              train=dict(steps=sft_steps, start_from="base"), checkpoint=dict(every_steps=sft_steps, keep=2)),
        module("preferences", "gptjax.road.preferring", ["sft", "exercises"], seconds=60, run="sft",
               prompts="exercises/prompts.jsonl", max_tokens=16),
        train("reward", "../reward_quickstart.py", ["sft", "preferences"], 60, **policy,
              train=dict(steps=reward_steps, batch_size=batch, start_from="sft")),
        command("reward_scaled", "reward scale", ["reward"], seconds=10, workdir="reward", to="standard"),
        train("dpo", "../dpo_quickstart.py", ["sft", "preferences"], 60, **policy,
              train=dict(steps=dpo_steps, batch_size=batch, start_from="sft", loss="dpo(beta=0.1, nll=0.2)")),
        train("ppo", "../ppo_quickstart.py", ["sft", "reward_scaled", "preferences"], 120,
              model=shape | dict(critic="separate"), data=dict(tokenizer="tokenizer", val_fraction=0.1),
              optim=dict(peak_lr=1e-4, warmup_steps=20),
              mesh=dict(replica=-1, fsdp=1, cpu_devices=2),
              train=dict(steps=ppo_steps, batch_size=batch, steps_per_call=16, log_every=16, start_from="sft",
                         critic_from="reward_scaled"),
              rl=dict(prompts="jsonl:preferences/prompts.jsonl", rewards="score(run='reward_scaled') + 0*exact",
                      max_tokens=16, kl_coef=0.05, unended_penalty=1.0),
              checkpoint=dict(every_steps=ppo_steps), eval=dict(every_steps=ppo_steps, sample_every_steps=ppo_steps)),
    ]  # fmt: skip
    judged = {"base": ("sft", 0), "sft": ("sft", None), "dpo": ("dpo", None), "ppo": ("ppo", None)}
    for name, (run, step) in judged.items():
        stages.append(
            module(f"{name}_evaluation", "gptjax.road.evaluating", dict.fromkeys(("sft", run, "reward_scaled", "text", "exercises")),
                   f"evaluations/{name}.json", 30, run=run, step=step, like="sft", text=["text"], text_tokens=16_384,
                   conversations="jsonl:exercises/held_out.jsonl", exercises="exercises/exercises.jsonl",
                   questions=File("quickstart_questions.txt"), reward="reward_scaled", max_tokens=16)
        )  # fmt: skip
    return Road(
        "A small road: Shakespeare, exercises, and rewards",
        tuple(stages),
        (
            Policy("base", "base_evaluation", "pretrained"),
            Policy("sft", "sft_evaluation", "fine-tuned", "base"),
            Policy("dpo", "dpo_evaluation", "DPO", "sft"),
            Policy("ppo", "ppo_evaluation", "PPO", "sft"),
        ),
        reward="reward",
        optimised="ppo",
        preferences="preferences",
        served="ppo",
    )
