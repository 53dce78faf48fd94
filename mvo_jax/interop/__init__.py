"""Other frameworks: the PyTorch reference, weights and parity."""
