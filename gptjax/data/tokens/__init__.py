"""Tokens on disk.

store           the tokens of a run, made now, before, or by `gptjax prepare`
folder          a folder of them: shards of each split, the tokenizer, a manifest
shards          one shard: a zarr array of tokens, and a table of documents
cache           where what is made once of a text is kept
"""
