"""The six systems of the paper's Table 1."""
