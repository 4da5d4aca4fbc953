"""The endpoints: what OpenAI's clients send, and what they are answered.

bodies        what a request may say, field by field
faults        what is wrong with a request, in OpenAI's shape
reading       a request's bytes to one of the bodies
work          a body to jobs: prompts, settings, seeds, room in the context
answering     jobs on the batcher's thread, heard in the event loop, given up with their client
screening     filters of what a request asks
calls         tools that an answer may call, and the calls in it
logprobs      log-probabilities in the two shapes that clients know
streaming     server-sent events
chat          /v1/chat/completions
completions   /v1/completions
embeddings    /v1/embeddings
tokens        /tokenize, /detokenize and /tokenizer_info
listing       /v1/models, and the swap to a newer step
openapi       /openapi.json, and a page of it
"""
