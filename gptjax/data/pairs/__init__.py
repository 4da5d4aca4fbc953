"""Preferences in place of running text (data.preferences): which of several answers to a prompt is better, or whether one is
good.

forms           the forms of records, each known by its fields: a prompt, its answers and their scores
transcripts     prompts that stand in front of both of a pair's conversations, as messages or as one text
encoding        a prompt with its answers in tokens, by the one function of data/chat
rows            row g of a run: the answers to one prompt, as arrays
store           the preferences of a config, cut into training and held-out ones
"""
