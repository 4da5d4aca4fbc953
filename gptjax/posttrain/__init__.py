"""After pretraining: preferences and reinforcement learning. Each stage is a loss and a batch for the loop of training/.

rollouts.py  answers that a policy draws to prompts, with the log-probability of each token as it was drawn
sampled.py   log-probability and entropy of the distribution that answers are drawn from, in the trainer
"""
