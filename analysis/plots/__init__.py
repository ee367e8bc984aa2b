"""Figures from tables. Every function returns a `matplotlib.figure.Figure`; nothing is shown, saved or kept in global state."""
