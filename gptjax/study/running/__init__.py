"""Starting, resuming and watching the runs of a study.

layout.py     the folder of a study            ledger.py        which runs it declares, by key
identity.py   what makes two runs the same     status.py        how far each is, by its run directory
runner.py     what is started when             status_table.py  the same for people
launching.py  the commands that start runs     jobs.py          their processes, and how they ended
pace.py       how long it still takes
"""
