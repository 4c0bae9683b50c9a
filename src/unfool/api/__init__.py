"""From Python: evaluate, certify, compare and sweep, with results that can be printed and asked."""
