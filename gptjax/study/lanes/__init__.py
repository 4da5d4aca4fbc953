"""Several runs in one program."""
