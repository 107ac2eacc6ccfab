"""NVIDIA's container toolkit on the host."""
