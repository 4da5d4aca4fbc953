"""PPO as Ziegler et al. 2019 fine-tuned GPT-2 774M from human preferences: stylistic continuation of books (sentiment).

    gptjax train --config=configs/ziegler_ppo.py --workdir=runs/ziegler_ppo

Before: runs/gpt2_large, such as of gptjax import; runs/reward, a reward model of it (train.loss="reward"); and prompts.jsonl,
{"prompt": the first 64 tokens of a passage of a book}. Hardware, time, result: not run here.

Sources: the released code, openai/lm-human-preferences (launch.py, train_policy.py): 2 million episodes, batch 512 in one
minibatch, 4 passes, lr 1e-5 linear to 0, value coefficient 0.1, both clips 0.2, gamma 1, lambda 0.95, rewards whitened
without their mean, advantages whitened, KL as k1 in the rewards of tokens, beta 0.15 adaptive to 6 nats with horizon 10,000
and errors clipped at 0.2, answers of 24 tokens at temperature 0.7, a value head on the policy. Their CNN/TL;DR summaries:
batch 32, lr 2e-6, beta 0.01 and 0.03 fixed.
Not published there: Adam's weight decay and clipping (none here). What differs here: their answers always have 24 tokens and
are cut at a sentence's end afterwards, with a fixed reward of -1 where there is none after 16 tokens; ours end with the
end-of-text token, and rl.unended_penalty=1 takes the place of that.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(context_length=1024, n_layers=36, d_model=1280, n_heads=20, critic="shared", remat="attention")
    config.data = dict(tokenizer="gpt2")
    config.optim = dict(peak_lr=1e-5, schedule="linear", final_lr_fraction=0.0, weight_decay=0.0, clip_norm=None)
    config.optim.update(beta1=0.9, beta2=0.999, eps=1e-5)
    config.train = dict(steps=4 * 3908, batch_size=512, steps_per_call=4, start_from="runs/gpt2_large", log_every=4)
    config.train.update(loss="ppo(clip=0.2, value_clip=0.2, value_coef=0.1)", vocab_chunks=4)
    config.rl = dict(prompts="jsonl:prompts.jsonl", rewards="score(run='runs/reward')", group=1, epochs=4)
    config.rl.update(max_tokens=24, temperature=0.7, kl_coef=0.15, kl_control="adaptive(target=6, horizon=10000)")
    config.rl.update(advantage="gae(gamma=1, lam=0.95, whiten=True, whiten_rewards=True)", unended_penalty=1.0)
    config.checkpoint = dict(every_steps=400)
    config.eval = dict(every_steps=400, sample_every_steps=400)
    return config
