"""The networks, their parts by name, and their counts."""
