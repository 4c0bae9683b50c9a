"""Reports: what a run says, as JSON, Markdown, one page of HTML, and figures.

A report is a pure function of the run: the same outcomes give the same report, whenever it is made.
"""
