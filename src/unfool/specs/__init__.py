"""Specs that come with the package; `unfool menu` lists them."""
