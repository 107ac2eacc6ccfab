"""Scripted libraries of NVIDIA's driver: NVML, and the one that tells GPUs of WSL2."""
