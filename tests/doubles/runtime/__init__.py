"""What the scripted containerd and CRI-O share, and the supervisor that restarts a runtime."""
