"""`gptjax data`: what a run reads, and whether it is whole.

inspection      the rows of any step, as facts and as text
statistics      what a run reads, in numbers
preferences     the same of a run on preferences
verification    every byte of a folder of tokens
"""
