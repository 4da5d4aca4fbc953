"""`gptjax prepare`: from documents to tokens."""
