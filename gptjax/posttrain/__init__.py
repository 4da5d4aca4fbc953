"""After pretraining: preferences and reinforcement learning. Each stage is a loss and a batch for the loop of training/.

rewards     what an answer is worth: functions by name, with weights
problems    prompts whose answers can be verified, generated
sandbox     code of a model run in a locked-down child process
tools       tools that an assistant calls in the middle of its answer
calculator  the tool that does arithmetic
"""
