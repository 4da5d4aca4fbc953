"""Several processes of one run: start, agreement, and what happens when one is lost."""
