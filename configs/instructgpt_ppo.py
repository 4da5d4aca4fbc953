"""PPO-ptx of InstructGPT 1.3B, Ouyang et al. 2022, stage 3.

    gptjax train --config=configs/instructgpt_ppo.py --workdir=runs/instructgpt_ppo

Before: runs/instruct_sft, two epochs of demonstrations with 10% of pretraining data (appendix C.3); runs/reward, the 6B
reward model, whose parameters the critic starts from; prompts.jsonl, {"prompt": text or messages}, about 31,000. Hardware,
time, result: not run here; gptjax info --config=configs/instructgpt_ppo.py tells parameters and memory.

Sources, appendix C.4: 256,000 episodes, batch 512, minibatch 64, one pass; beta 0.02; lr warm-up over 10 iterations, then
constant; EMA of the weights 0.992; clip 0.2; temperature 1; no discount; critic of 6B with lr 9e-6 (for the policies of 1.3B
and 6B); pretraining gradients with gamma 27.8, from 8 times as many examples as episodes, summed in one step. Prompts and
answers of at most 1,000 tokens (appendix E); Adam 0.9, 0.95 (C). Shapes: table 2.1 of Brown et al. 2020.
Not published: the lr of the policy (they swept 2.55e-6 to 2.55e-5; the critic's here), lambda of GAE (0.95 is Ziegler's),
value clip and value coefficient (Ziegler's), weight decay and clipping (none), whether the EMA counts updates (here) or
iterations, how gamma is normalised (here both losses are means over their own tokens), the pretraining data (C4 here).
What differs here: the warm-up begins at 0, theirs at a tenth; bfloat16, theirs float16.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(vocab_size=None, context_length=2048, n_layers=24, d_model=2048, n_heads=16, remat="attention")
    config.model.update(critic="separate(n_layers=32, d_model=4096, n_heads=32)")
    config.data = dict(tokenizer="gpt2", chat="gptjax", val_split="document", val_fraction=5e-3)
    config.optim = dict(peak_lr=9e-6, schedule="constant", warmup_steps=80, weight_decay=0.0, clip_norm=None)
    config.optim.update(beta1=0.9, beta2=0.95, ema_decay=0.992, critic_lr_ratio=1.0)
    config.mesh = dict(fsdp=-1)
    config.train = dict(steps=4000, batch_size=64, steps_per_call=8, log_every=8, vocab_chunks=4)
    config.train.update(loss="ppo(clip=0.2, value_clip=0.2, value_coef=0.1, ptx_coef=27.8)")
    config.train.update(start_from="runs/instruct_sft", critic_from="runs/reward")
    config.rl = dict(prompts="jsonl:prompts.jsonl", rewards="score(run='runs/reward')", group=1, epochs=1)
    config.rl.update(max_tokens=1000, temperature=1.0, kl_coef=0.02, advantage="gae(gamma=1, lam=0.95)")
    config.rl.update(ptx="tfds:c4/en:3.1.0", ptx_rows=512)
    config.checkpoint = dict(every_steps=80)
    config.eval = dict(every_steps=80, sample_every_steps=80)
    return config
