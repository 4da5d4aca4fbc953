"""After pretraining: preferences and reinforcement learning. Each stage is a loss and a batch for the loop of training/.

rollouts    answers that a policy draws to prompts, with the log-probability of each token as it was drawn
sampled     log-probability and entropy of the distribution that answers are drawn from, in the trainer
best_of     the best of n answers by a reward, and what n buys: reward against divergence
rewards     what an answer is worth: functions by name, with weights
problems    prompts whose answers can be verified, generated
sandbox     code of a model run in a locked-down child process
tools       tools that an assistant calls in the middle of its answer
calculator  the tool that does arithmetic
"""
