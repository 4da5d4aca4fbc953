"""GPT-1 and GPT-2 as Hugging Face's transformers keeps them: `gptjax import` and `gptjax export`, without torch.

families.py       what a config.json says as a ModelConfig and back, and the names and layouts of the tensors
tensors.py        safetensors files, one or sharded, read and written tensor by tensor
vocabulary.py     tokenizer files
importing.py, exporting.py     a folder of transformers to a run directory, and back
"""
