"""The Python interface: evaluate, certify, compare, and sweep, with results to print and inspect."""
