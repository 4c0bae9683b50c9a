"""Runs on disk, and pure functions of what they recorded."""
