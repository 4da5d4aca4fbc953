"""Models as llama.cpp keeps them, one GGUF file each: `gptjax import MODEL.gguf` and `gptjax export --to=gguf`.

container.py      the file: header, metadata and tensors, mapped rather than read, and written tensor by tensor
blocks.py         types of tensors: floats, and blocks of small integers with their scales
superblocks.py    the K types: blocks of 256 values with scales of scales
architectures.py  what a file's metadata and tensors say as a config.json and tensors of transformers, and back
rope.py           scaled rotary positions, which a file keeps as metadata or as a tensor of factors
vocabulary.py     the tokenizer of a file as one of ours, and back
importing.py, exporting.py     a file to a run directory, and back
"""
