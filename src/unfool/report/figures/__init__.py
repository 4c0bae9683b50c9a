"""The figures of reports. Matplotlib is imported only when a figure is drawn."""
