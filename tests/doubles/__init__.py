"""Scripted programs that play what a node has: runtimes, the toolkit, NVML, systemd."""
