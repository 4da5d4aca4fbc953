"""The whole road on real text: from packages of Debian and PyPI to a served model, with a page that compares the stages.

    gptjax road configs/roads/small.py --out=roads/small

Hardware: two CPU cores, an hour by the seconds that stand beside each stage. What it came to is on its page, index.html, with
the time of each stage. On larger machines the same file with other sizes:

    gptjax road configs/roads/small.py --out=roads/large --set=d_model=768 --set=n_layers=12 --set=n_heads=12 \
        --set=context_length=1024 --set=devices=None --set=batch=256 --set=base_steps=20000 --set=sft_steps=2000

Source: nobody's recipe. Text, conversations and their weights are those of configs/registry_corpus.py and sft_registry.py, of
the text four sources of seven. Rewards are what can be judged without people: pairs of the fine-tuned model's own answers to
exercises, the right one chosen. The reward model sees no right answer beside them, and PPO nothing but the reward model; that
the answers are right is measured beside it.
"""

from gptjax.road.road import File, Policy, Road, command, module, script, train

CLEANED = {"manuals": "unicode,length=200", "dictionaries": None, "python": None, "zh_poems": None}
WEIGHTS = dict(manuals=2.0, dictionaries=1.5, python=1.5, zh_poems=1.0)
CONVERSATIONS = dict(reading=4.0, arithmetic=3.0, translation=2.0, small_talk=1.0, robot=1.0, classification=0.5)
CONVERSATIONS |= dict(pairs_en=0.5, pairs_zh=0.2, faq_en=0.2, faq_zh=0.2)
TEXTS = ["manuals", "dictionaries", "python", "zh_poems"]


def get_road(
    context_length=256,
    n_layers=6,
    d_model=256,
    n_heads=8,
    vocab_size=8192,
    devices=2,
    base_steps=1000,
    sft_steps=700,
    batch=8,
    prompts=1200,
    group=4,
    reward_steps=100,
    dpo_steps=150,
    ppo_steps=320,
    pairs_batch=16,
    exercises=250,
):
    """devices: CPU devices that share each batch; None: those there are, of another kind."""
    shape = dict(
        context_length=context_length, n_layers=n_layers, d_model=d_model, n_heads=n_heads, scan_unroll=n_layers
    )
    common = dict(model=shape, mesh=dict(replica=-1, fsdp=1, cpu_devices=devices or 1))
    raw = {"manuals": "manuals", "dictionaries": "dictionaries", "python": "code_python", "zh_poems": "zh_poems"}
    pairs = dict(source="jsonl:preferences/pairs.jsonl", tokenizer="tokenizer")
    stages = [
        script("raw", "../../notebooks/registry_corpus.py", resumes=True, seconds=110),
        script("conversations", "../../notebooks/sft_registry.py", resumes=True, seconds=30),
        script("exercises", "../../notebooks/road_exercises.py", seconds=2, prompts=prompts, held_out=exercises),
        command("tokenizer", "tokenizer train", ["raw"], seconds=40, vocab_size=vocab_size, train_bytes=20e6,
                val_fraction=0.02, special="chat,fim", source=[f"jsonl:raw/{folder}" for folder in raw.values()]),
        *(
            command(name, "prepare", ["raw", "tokenizer"], f"text/{name}", resumes=True, seconds=60, tokenizer="tokenizer",
                    source=f"jsonl:raw/{folder}", val_fraction=0.02, dedup="exact", clean=CLEANED[name])
            for name, folder in raw.items()
        ),
        train("base", "../registry_corpus.py", TEXTS, 1120, **common,
              data=dict(mixture={name: f"text/{name}" for name in TEXTS}, weights=WEIGHTS, weight_stages=()),
              train=dict(steps=base_steps, batch_size=batch)),
        train("sft", "../sft_registry.py", ["base", "tokenizer", "conversations"], 750, **common,
              data=dict(mixture={name: f"jsonl:conversations/train/{name}.jsonl" for name in CONVERSATIONS},
                        weights=CONVERSATIONS, tokenizer="tokenizer"),
              train=dict(steps=sft_steps, batch_size=batch, start_from="base"), checkpoint=dict(every_steps=sft_steps)),
        module("preferences", "gptjax.road.preferring", ["sft", "exercises"], seconds=135, run="sft",
               prompts="exercises/prompts.jsonl", group=group),
        train("reward", "../reward_quickstart.py", ["sft", "tokenizer", "preferences"], 90, **common, data=pairs,
              optim=dict(peak_lr=3e-4), train=dict(steps=reward_steps, batch_size=pairs_batch, start_from="sft")),
        command("reward_scaled", "reward scale", ["reward", "preferences"], seconds=25, workdir="reward", to="standard"),
        train("dpo", "../dpo_quickstart.py", ["sft", "tokenizer", "preferences"], 180, **common, data=pairs,
              optim=dict(peak_lr=1e-4),
              train=dict(steps=dpo_steps, batch_size=pairs_batch, start_from="sft", loss="dpo(beta=0.1, nll=0.2)")),
        train("ppo", "../ppo_quickstart.py", ["sft", "tokenizer", "reward_scaled", "preferences"], 430,
              model=shape | dict(critic="separate"), mesh=common["mesh"],
              data=dict(tokenizer="tokenizer", val_fraction=0.05), optim=dict(peak_lr=5e-5, warmup_steps=20),
              train=dict(steps=ppo_steps, batch_size=pairs_batch, steps_per_call=16, log_every=16, start_from="sft",
                         critic_from="reward_scaled", loss="ppo(value_coef=0.1)"),
              rl=dict(prompts="jsonl:preferences/prompts.jsonl", rewards="score(run='reward_scaled') + 0*exact",
                      max_tokens=32, kl_coef=0.05, unended_penalty=1.0),
              checkpoint=dict(every_steps=160), eval=dict(every_steps=160, sample_every_steps=160)),
    ]  # fmt: skip
    judged = {"base": ("sft", 0), "sft": ("sft", None), "dpo": ("dpo", None), "ppo": ("ppo", None)}
    stages += [
        module(f"{name}_evaluation", "gptjax.road.evaluating",
               dict.fromkeys(("sft", run, "reward_scaled", "conversations", "exercises", *TEXTS)),
               f"evaluations/{name}.json", 60, run=run, step=step, like="sft",
               text=[f"text/{text}" for text in TEXTS], text_tokens=16_384, reward="reward_scaled",
               conversations="jsonl:conversations/held_out/*.jsonl", exercises="exercises/exercises.jsonl",
               questions=File("questions.txt"))
        for name, (run, step) in judged.items()
    ]  # fmt: skip
    return Road(
        "A road on real text: 6.9M parameters, from packages of Debian and PyPI to PPO and DPO",
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
