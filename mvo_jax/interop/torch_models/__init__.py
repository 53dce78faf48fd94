"""The models in PyTorch: the other side of parity checks and speed comparisons."""
