"""What an answer is worth: functions of an answer and its record, by name, with weights.

reward          an Answer, the table REWARDS, a config's rewards made into functions, and answers scored by them
extraction      what of an answer's text is its answer: the last number, a boxed part, what follows "answer:"
matching        the record's answer: text, number, choice, words that have to be there
form            how an answer is written: a pattern, JSON, tags, an end
instructions    instructions that a program can check (IFEval), by the table CHECKS
checks          the checks themselves, of a text
length          length, answers that go on too long, repetition
classifier      the probability of a class under a run with a task head
code            code that passes its tests in the sandbox
"""
