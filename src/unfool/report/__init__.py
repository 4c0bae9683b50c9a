"""Reports on runs, for a terminal, as Markdown, as one page of HTML, and as JSON.

Each kind of result has a module with a function that returns a `Document`, and three renderers show it.
A report is a pure function of the run: the same outcomes always give the same report.
"""
