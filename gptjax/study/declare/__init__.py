"""What a study is, before any of its runs is started.

declaration.py  what configs/studies/NAME.py returns        recipes.py  shapes and rules from one dial
lengths.py      tokens and steps from budgets, branches     plan.py     the table of runs and what they cost
"""
