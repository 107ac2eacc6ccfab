"""NVIDIA's container toolkit on the host: its parts, where it is from, what it says."""
