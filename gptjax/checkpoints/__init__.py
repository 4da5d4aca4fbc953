"""Checkpoints: written, found, checked, read."""
