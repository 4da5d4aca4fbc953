"""What a run is worth on a text.

held_out        loss on held-out text, with standard errors
run_loss        the loss of a run on any text
texts           which text that is
protocols       how published numbers on known data sets are made
judging         which evaluation is the best, by a metric, and how long ago it was
scoring         how likely continuations are, given their contexts
metrics         accuracy, F1, correlations ... of predictions, and their standard errors
labelled        what a model with a task head is worth on labelled examples
preferred       how well scores of answers agree with preferences
preference_metrics  accuracy, calibration, and what length has to do with it
scored          the scores that a reward model gives to conversations
predictions     what the outputs of a task head say of an example
classifying     what a run says of new examples
compare         two runs on one text, and whether the difference could be chance
differences     the difference of two runs from pairs, its error, and p
compare_labelled  two runs with task heads on the same examples
"""
