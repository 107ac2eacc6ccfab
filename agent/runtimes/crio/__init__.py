"""What is particular to CRI-O: its files, our drop-in or hook, and what proves them."""
