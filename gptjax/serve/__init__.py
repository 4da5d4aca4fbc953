"""A run served over HTTP, as OpenAI's clients expect it, and a page to talk to it.

jobs        a text that somebody waits for, and what is said of it while it is made
constraints JSON, schemas, regular expressions and grammars that a text is kept to
tool_calls  tools that an answer may call: how they are asked for, and how calls are read from its text
"""
