"""Code of a model run in a locked-down child process. No boundary against a determined attacker: docs/rewards.md.

sandbox     programs in, outcomes out: limits, many at a time, what ended each
child       the program of the child process, which locks itself down and then runs what it was given
lockdown    all mechanisms in order, and what each denies
namespaces  a network with no devices
landlock    files: Python's own may be read, nothing may be written
seccomp     system calls that fail, and the filter of them
syscalls    their numbers
"""
