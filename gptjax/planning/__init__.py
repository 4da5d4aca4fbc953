"""What a run needs, before it is started.

info            what a config is and costs, from shapes alone
plan            the real step, compiled for a machine that is not here
plan_table      a plan for people
decode          the engine's prefill and decode, compiled likewise
decode_table    such a plan for people
plan_docs       docs/plans.md: plans of shipped sizes
topology        machines by name
gpus            GPUs that are not here, as their compiler has to be told of them
hlo             a compiled program, read from its text
costs           FLOPs and bytes of one instruction
collectives     what a program sends, over which axis, and what runs meanwhile
roofline        how long a step takes at best
estimate        the same by arithmetic alone, where nothing can be compiled
rl              what reinforcement learning holds: up to four models and a cache
search          meshes, microbatches and remat policies, tried
"""
