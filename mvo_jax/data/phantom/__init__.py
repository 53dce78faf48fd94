"""Simulated cine cohort: synthetic hearts for checking the method, without any clinical claim."""
