"""A run in hand: the one door for notebook, evaluation, export and study."""
