"""Make a Kubernetes GPU node's container runtime right for CDI, and never break it."""

__version__ = "0.1.0"
