"""A scripted containerd for tests and the demo, and the supervisor that restarts a runtime."""
