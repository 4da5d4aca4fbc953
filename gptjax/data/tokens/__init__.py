"""Tokens on disk.

store           the tokens of a run, made now, before, or by `gptjax prepare`
folder          a folder of them: shards of each split, the tokenizer, a manifest
shards          one shard: a zarr array of tokens, and a table of documents
rendering       conversations in tokens, with the weight of each as a target
cache           where what is made once of a text is kept
"""
