"""A scripted containerd for tests and the demo, and a node that runs it."""
