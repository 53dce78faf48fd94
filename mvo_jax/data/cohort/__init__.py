"""A real cohort, prepared once: one geometry, 8 bits, TFDS files and a manifest."""
