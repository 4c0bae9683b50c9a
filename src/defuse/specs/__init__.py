"""Specs that come with the package; `defuse menu` lists them."""
