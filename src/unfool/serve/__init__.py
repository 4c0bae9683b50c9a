"""The HTTP service of a defended classifier (extra `serve`)."""
