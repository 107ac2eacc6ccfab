"""A scripted CRI-O for tests: its own reading of the real files, and a node that runs it."""
