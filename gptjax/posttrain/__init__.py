"""After pretraining: preferences and reinforcement learning. Each stage is a loss and a batch for the loop of training/.

reward          the loss of a reward model: Bradley-Terry over all pairs of a prompt
"""
