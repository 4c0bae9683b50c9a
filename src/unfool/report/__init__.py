"""Reports: what a run says, in a terminal, as Markdown, as one page of HTML, and as JSON.

Each kind of result has a file with a function that returns a `Document`; three renderers show it. A
report is a pure function of the run: the same outcomes give the same report, whenever it is made.
"""
