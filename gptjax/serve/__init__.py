"""A run served over HTTP, as OpenAI's clients expect it, and a page to talk to it.

jobs        a text that somebody waits for, and what is said of it while it is made
batcher     the thread that makes texts, of jobs that come from any other
scheduler   what that thread does next: some prompt, some tokens
row         a job's row: what it says to its listener
embedding   texts to vectors
"""
