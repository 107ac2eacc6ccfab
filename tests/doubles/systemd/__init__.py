"""A scripted systemctl."""
