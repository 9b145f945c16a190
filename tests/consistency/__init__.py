"""A consistency harness: clients of every feature, faults that a seed names, a recorded history, and checkers.

``python -m tests.consistency`` runs it (``make soak``); ``docs/explanation/consistency.md`` says what it does.
"""
