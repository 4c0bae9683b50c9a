"""Networks as plain torch modules, which import nothing else from the package."""
