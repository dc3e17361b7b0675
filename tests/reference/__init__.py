"""The slow, obvious version of each formula of methods.md: one fact, whole sequences, all logits, dense solves.

Written from the formulas and not from ``src``, of which it only borrows where a family keeps its parts.
"""
