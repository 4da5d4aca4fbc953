"""Whether and how fast this machine computes what it should.

parity          what every mesh of eight devices gives is what one device gives
miniature       a config at sizes that a CPU runs in a second
coordcheck      how activations grow with width or depth while training
bench_training, bench_data, bench_generation      how fast training, data and text are here
bench_serve     how fast a server answers many clients, beside transformers serve
bench_sft, bench_sft_trl      how fast a model learns answers, beside TRL
bench_rl, bench_rl_trl, bench_rl_tunix      iterations of GRPO, beside TRL and tunix
bench_prefs, bench_prefs_trl      how fast a model learns preferences, beside TRL
trl_side        a trainer of TRL, a step at a time
"""
