"""Reports: what a run says, as JSON, Markdown, one page of HTML, and figures."""
