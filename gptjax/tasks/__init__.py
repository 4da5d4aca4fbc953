"""Tasks of lm-evaluation-harness, and tasks in Python, on a run.

task               what a task in Python says, and the table of those there are: add one there
arithmetic         sums in words
humaneval          programming problems (HumanEval): pass@k of code that is run
task_files         which tasks are asked for: files, folders, Python and lm-eval's names
task_set           tasks with their data, evaluated: values with standard errors
harness            a run as a model that lm-eval asks
task_evaluation    the hook that evaluates tasks while a run is training
"""
