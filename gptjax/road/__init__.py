"""The whole road in one command: text, tokenizer, pretraining, fine-tuning, rewards, policies, and a page that compares them.

road        what a road file declares: stages, each a command of gptjax or a script, and what each reads
inputs      what a stage is made from: its digest, and in what two of them differ
ledger      road.json: which stages are done, with the digests of what they were made from
runner      runs what is not done, one process at a time
progress    how far a stage is, and how long the road still takes
exercises   exercises with one right answer each, from files
preferring  a program: pairs of answers that a policy gave to exercises, the right one chosen
evaluating  a program: what one stage is worth, number by number, as JSON
comparing   a stage against the one before it, with errors and tests
pictures    drawings of the page
page        the page
"""
