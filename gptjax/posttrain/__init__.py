"""After pretraining: preferences and reinforcement learning. Each stage is a loss and a batch for the loop of training/.

reward              the loss of a reward model: Bradley-Terry over all pairs of a prompt
answers             log-probabilities of the answers of a batch, under the model and under its reference
preference_losses   losses of pairs of answers: DPO and its family
kto                 a loss of answers judged one by one: KTO
preference_rows     rows of preferences made ready for these losses
reference           which parameters are the reference, and log-probabilities under them, computed once
mismatched          answers behind prompts that they do not answer, for KTO
preference_numbers  what these losses log beside themselves

sampled             the distribution that tokens are drawn from, in the trainer: log-probabilities and entropies
rollouts            answers that a policy draws to prompts, with the log-probabilities they were drawn with
advantages          how much better an answer was than expected, token by token
policy_losses       the losses of PPO, GRPO and their kin
values              what a critic says of each token

compatibility       what of a config goes together
prompts             what is answered: prompts of files or generators, as tokens, train and held out
answering           prompts answered by the model in training, and the answers scored
judging_models      log-probabilities of the policy and of a frozen reference, and a critic's values, of whole answers
minibatches         from the answers of an iteration to the arrays of one call of the train step
ptx                 rows of text beside them
rollout_feed        all of these as what the loop asks for its next call
rollout_report      what iterations leave in the log: numbers, answers as text, alarms
reward_evaluation   the mean reward of held-out prompts

rewards             what an answer is worth: functions by name, with weights
problems            prompts whose answers can be verified, generated
sandbox             code of a model run in a locked-down child process
tools               tools that an assistant calls in the middle of its answer
calculator          the tool that does arithmetic

best_of             the best of n answers by a reward, and what n buys: reward against divergence
"""
