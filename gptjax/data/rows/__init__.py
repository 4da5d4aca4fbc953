"""Row g of a run, as arithmetic."""
