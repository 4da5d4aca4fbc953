"""Several runs of one shape in one program.

grouping.py  which runs may share a process      together.py  each with its own directory and log
program.py   R runs as lanes of one program      bench.py     what it gains here
"""
