"""A run served over HTTP, as OpenAI's clients expect it, and a page to talk to it.

jobs             a text that somebody waits for, and what is said of it while it is made
people           what people see of a server and say of it, as an application takes it: the next three
page             the chat page, whose files lie in browser/
feedback         votes on answers, written as preferences that training reads
quality          what answers are like in service, by model and day, beside a reference week
answer_measures  numbers of an answer, and the bins that they are counted in
drift            how far a histogram has moved from another
quality_metrics  these numbers as Prometheus reads them
quality_page     and as a page for people
"""
