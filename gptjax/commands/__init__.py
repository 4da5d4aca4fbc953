"""One file a command: add_flags(parser), what it takes; run(args), what it does, prints and returns as exit code.

train            a run of a config
info             its parameters, FLOPs and memory
plan             the same, compiled for a machine that is not here
eval             loss of a run on text; task_tables.py on tasks of lm-evaluation-harness
compare          two runs on the same text
sample           text from a run; chatting.py is the conversation of --chat, best_of.py chooses among answers
serve            a server of OpenAI's shape
chat             a conversation in the terminal: chat_session.py keeps it, chat_input.py reads what is typed, chat_run.py and
                 chat_server.py answer
ask              a recipe applied to a text
index            an index of documents for recipes
watch            a page of a run or a study for a browser
verify           whether a run's files are as they were written
prepare          token shards from text
data             what a run reads; data_table.py and data_pairs.py print it, data_picture.py draws it
tokenizer        trains one, or shows what it does
adapter          merges the adapter of a run into its model
reward           puts the scores of a reward model on a scale
import_, export  models of other programs
road             the whole road, from text to a policy, from one file
study            study_plan.py, study_run.py, study_status.py, study_fit.py
parity           the same training on every mesh
coordcheck       the same change of activations at every width
bench            speed

flags            flags that several commands have
reading          what eval and compare share
"""
