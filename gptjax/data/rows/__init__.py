"""Row g of a run, as arithmetic.

pipeline        the rows of a run: a function of text, seed and g
packing         rows from the tokens of one source
conversations   whole ones, with the weight of each token as a target
mixture         which source row g comes from, and which of its rows it is
objectives      what a row is trained to do: the next token
infilling, spans, denoising     other objectives: fill in the middle, span corruption, a prefix or masks
pieces          pieces of documents within rows, which the objectives share
hashing         random numbers as arithmetic, of which the order of data is made
reading         rows read ahead, in a thread or in processes
"""
