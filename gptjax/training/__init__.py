"""The training loop and the step."""
