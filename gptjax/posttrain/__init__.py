"""After pretraining: preferences and reinforcement learning. Each stage is a loss and a batch for the loop of training/.

sampled         the distribution that tokens are drawn from, in the trainer: log-probabilities and entropies
advantages      how much better an answer was than expected, token by token
policy_losses   the losses of PPO, GRPO and their kin
values          what a critic says of each token
"""
