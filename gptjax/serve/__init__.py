"""A run served over HTTP, as OpenAI's clients expect it, and a page to talk to it.

jobs        a text that somebody waits for, and what is said of it while it is made
filters     what is kept from a model, and from those who read its answers
personal_data  patterns of addresses, numbers of phones, cards and accounts
"""
