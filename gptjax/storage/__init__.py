"""What a folder is, and whether a place can be written."""
