"""Starting, resuming and watching the runs of a study."""
