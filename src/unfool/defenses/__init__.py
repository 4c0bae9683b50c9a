"""Defences: purifiers, and classifiers behind them."""
