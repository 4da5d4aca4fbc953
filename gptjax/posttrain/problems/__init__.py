"""Prompts whose answers can be verified, generated: no file, no network, as many as one likes.

problem     what a generator is, the table GENERATORS, and problems by their number, train and held out apart
arithmetic  sums, differences, products; which of two numbers is larger
letters     copying, reversing and sorting letters, and counting them
reasoning   the generators and scorers of the package reasoning-gym
"""
