"""What a study is: its file, its runs, before any is started."""
