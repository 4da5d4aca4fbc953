"""`gptjax prepare`: from documents to tokens.

preparation     the whole of it, by processes, begun again where it stopped
unfinished      a folder that is being filled: by whom, and what is done
workers         processes that do tasks, and end with their parent
shardmaker      one shard, as a worker makes it
preparation_report      what is told of a folder
cleaning/       documents kept, changed or removed, step by step
dedup, duplicates       fingerprints of documents; which of them equal an earlier one
decontamination     documents that share words with evaluation texts
words           what all of these take for a word
"""
