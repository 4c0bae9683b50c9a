"""Networks as plain torch modules: they import nothing else of the package."""
