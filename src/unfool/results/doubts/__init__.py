"""Doubts: reasons not to believe a run, each a function of what it recorded."""
