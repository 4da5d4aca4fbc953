"""A run in hand: the one door for notebook, evaluation, export and study.

run             gptjax.load(path), and what can be asked of the Run that it gives
drafting        what guesses tokens for a run, so that its texts come faster
inside          logits, attention, the residual stream, the logit lens
token_loss      the loss of each token of a text, as numbers and in colours
attention_maps  attention weights with their axes and tokens
adapters        the adapter of a run, merged into its model, or another one on the same base
rewards         a reward model whose scores are put on a scale
metrics_frame   the log of a run as tables
arguments       what is said of an argument that cannot be
"""
