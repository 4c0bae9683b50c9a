"""The figures of reports. Matplotlib is imported when one is drawn."""
