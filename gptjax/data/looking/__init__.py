"""`gptjax data`: what a run reads, and whether it is whole.

inspection      the rows of any step, as facts and as text
statistics      what a run reads, in numbers
verification    every byte of a folder of tokens
"""
