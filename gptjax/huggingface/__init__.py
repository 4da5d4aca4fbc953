"""Models as Hugging Face's transformers keeps them: `gptjax import` and `gptjax export`, without torch.

families.py       which families there are, by the model_type of a config.json
gpt1.py, gpt2.py, llama.py     one each: what a config.json says as a ModelConfig and back, names and layouts of tensors
mistral.py, qwen2.py, qwen3.py, smollm3.py, gemma.py     likewise, as what they have otherwise than Llama
rope_settings.py, layer_types.py     what those say of rotary positions, and of one layer and not of another
base.py           what a family states, and what all families do with it
tensors.py        safetensors files, one or sharded, read and written tensor by tensor
vocabulary.py     tokenizer files
chat_template.py  how conversations are written: the Jinja template of a tokenizer
ends.py           the ids that begin and end a document
peft.py           adapters as PEFT keeps them, from and to runs with an adapter
peft_ranks.py     several ranks in one of these, where ours are parts of one matrix
peft_prefix.py    prefix and prompt tuning of these
peft_adalora.py   AdaLoRA of these
task_models.py    a model with a task head as the class of its task
importing.py, exporting.py     a folder of transformers to a run directory, and back
"""
