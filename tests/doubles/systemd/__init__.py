"""A scripted systemctl, and a bus that answers as systemd does."""
