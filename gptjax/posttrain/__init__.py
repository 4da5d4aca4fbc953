"""After pretraining: preferences and reinforcement learning. Each stage is a loss and a batch for the loop of training/.

answers             log-probabilities of the answers of a batch, under the model and under its reference
preference_losses   losses of pairs of answers: DPO and its family
kto                 a loss of answers judged one by one: KTO
preference_rows     rows of preferences made ready for these losses
reference           which parameters are the reference, and log-probabilities under them, computed once
mismatched          answers behind prompts that they do not answer, for KTO
preference_numbers  what these losses log beside themselves
reward              the loss of a reward model: Bradley-Terry over all pairs of a prompt
"""
