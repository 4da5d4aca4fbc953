"""Optimizers, and what is done with gradients beside."""
