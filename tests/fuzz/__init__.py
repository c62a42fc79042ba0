"""Randomised interleavings of everything that can happen to a ticket: `python -m tests.fuzz`."""
