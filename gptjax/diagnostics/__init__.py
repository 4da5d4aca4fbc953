"""Whether and how fast this machine computes what it should."""
