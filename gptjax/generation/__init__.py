"""Text from a model: one engine for notebook, command line and tasks.

completion = text.generate(engine.Engine(graph, params), tokenizer, "Once upon", settings.Settings(max_tokens=50))[0]

settings.py   how a text is made, and the table of the options that choose its tokens
sampling.py   logits to a token: what the options do
decoding.py   the compiled programs: prefill and decode, with a cache of keys and values
engine.py     tokens to tokens: a batch of rows of unequal length, from its start to its end
slots.py      tokens to tokens: rows that come and go
reading.py    prompts that are read chunk by chunk, for rows that join others
prefixes.py   what is kept of them for prompts that begin alike
speculative.py   tokens that are guessed, read at once and kept where the distribution stays what it is
text.py       texts to texts: stop strings, streaming, log-probabilities
embedding.py   texts to vectors
watching.py   what can be read of a text while its tokens come
chat.py       conversations to answers
beam.py       beam search
"""
