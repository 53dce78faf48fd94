"""Is it the same network? Flax beside PyTorch, stage by stage and step by step, for any model."""
