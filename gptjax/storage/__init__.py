"""Files and folders, local or on gs://, whoever they belong to.

folder_kinds    what kind of folder a folder is, for messages where one of another kind was expected
outputs         whether a file or folder can be written where a flag says, asked before long work
writing         files that are there whole or not at all
code            gptjax's own files, digested: what a manifest names, and what hosts compare
"""
