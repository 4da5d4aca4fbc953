"""From finished runs to laws and verdicts."""
