"""Every field of a run's config, what it may be, and configs from files.

fields           the sections and their fields: type, default, meaning, and a word for what changing one does
changes          what follows from that word: at a resume, for a branch, in a study, for a compiled step
removed          fields there once were, and the value that each always has now
checks           what may be, and what goes together; made once, when a Config is made
chat_checks      the same for conversations
preference_checks  the same for preferences
layer_patterns   likewise of layers that are not all alike, where a config has such
bounds           how large a number may be
catalogue        which architectures there are, and what a config may ask of each
task_heads       which heads a model can have beside that of the language model
text_kinds       which sources, objectives and tokenizers there are, and what a config may ask of each
mixture_weights  the weights of a mixture's sources
spelling         a source or a tokenizer in one word
values           a Config from nested mappings, such as config.json
config_file      a Config from what people write: a file, the command line, --mesh
extras           packages that are imported where they are chosen, and what installs them
file_errors      where a config file went wrong
neutral          a config without its run: model, text and optimizer alone
"""
