"""Figures as PNG: curves and pictures of cases."""
