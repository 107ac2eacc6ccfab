"""The parts that are particular to CRI-O: its files, our drop-in and hook, and their proof."""
