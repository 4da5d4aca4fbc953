"""A run served over HTTP, as OpenAI's clients expect it, and a page to talk to it.

From a request to a text:

api              the endpoints: a request becomes jobs, and what is said of them an answer
service          what the endpoints share
jobs             a text that somebody waits for, and what is said of it while it is made
batcher          the thread that makes texts, of jobs that come from any other
scheduler        what that thread does next: some prompt, some tokens
row              a job's row: what it says to its listener
embedding        texts to vectors, between the tokens of others
constraints      JSON, schemas, regular expressions and grammars that a text is kept to
grammar_trial    a long grammar, compiled first where it can do no harm
tool_calls       tools that an answer may call: how they are asked for, and how calls are read from its text
filters          what is kept from a model, and from those who read its answers
recipes          prompt templates that requests may name
personal_data    patterns of addresses, numbers of phones, cards and accounts

The process:

models           the runs and adapters that answer, by name
guards           who may ask, how much, and the log
metrics          what is counted, for Prometheus
app              all of these as one application
addresses        where it listens
starting         from flags to models, compiled programs and an open door
server           the process: signals, draining, swapping

What people see of it:

people           the next three, as an application takes them
page             the chat page, whose files lie in browser/
feedback         votes on answers, written as preferences that training reads
quality          what answers are like in service, by model and day, beside a reference week
answer_measures  numbers of an answer, and the bins that they are counted in
drift            how far a histogram has moved from another
quality_metrics  these numbers as Prometheus reads them
quality_page     and as a page for people
"""
