"""Configure the container runtime of a Kubernetes GPU node for NVIDIA GPUs and CDI."""

__version__ = "0.1.0"
