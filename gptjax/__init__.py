"""gptjax: pretrain GPTs in JAX. `gptjax --help` lists the commands; importing this imports nothing heavy."""
