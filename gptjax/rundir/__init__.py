"""The run directory, which is the contract between commands."""
