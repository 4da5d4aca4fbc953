"""The run directory, which is the contract between commands.

run_directory   what lies in it: config, manifest, tokenizer, text
resuming        what a resume may change, and how a finished run is made longer
model_directory a run directory of a model that no training made here
metrics         where the numbers of a run go, and how they are read again
runlock         one writer at a time
verification    `gptjax verify`: every byte of its checkpoints against what was written
"""
