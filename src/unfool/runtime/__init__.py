"""Devices, memory, files and progress."""
