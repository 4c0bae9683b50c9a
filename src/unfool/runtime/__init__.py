"""Devices, memory, files, downloads and progress."""
