"""A scripted NVIDIA Container Toolkit: its programs and libraries, and trees that packages make."""
