"""Defenses: purifiers, and classifiers behind them."""
