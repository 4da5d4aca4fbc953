"""Labelled examples in place of running text (data.task): records of files, made into sequences of tokens and a label.

records         the records of JSON lines and Parquet files
task            what every task has in common: control tokens, truncation, labels
kinds           the tasks by name: which fields of a record become which sequences
store           the examples of a config, cut into training and held-out ones
rows            row g of a run: one example, as arrays
"""
