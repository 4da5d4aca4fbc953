"""After pretraining: preferences and reinforcement learning. Each stage is a loss and a batch for the loop of training/.

sampled.py   log-probability and entropy of the distribution that answers are drawn from, in the trainer
"""
