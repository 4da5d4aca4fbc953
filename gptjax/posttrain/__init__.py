"""After pretraining: preferences and reinforcement learning. Each stage is a loss and a batch for the loop of training/."""
