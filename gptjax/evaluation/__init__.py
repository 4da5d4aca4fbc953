"""What a run is worth on a text."""
