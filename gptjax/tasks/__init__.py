"""Tasks of lm-evaluation-harness.

    task_set        evaluation of a run on tasks: values with standard errors
    task_files      tasks by name: the user's files, and stock ones
    harness         a model of ours as the harness asks for it
    task_evaluation     tasks while a run is training
"""
