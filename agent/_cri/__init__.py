"""The CRI's messages, compiled from `protos/` when the package is built."""
