"""Is it the same network? Flax beside PyTorch, stage by stage and step by step, for any model.

``cases`` says what is compared and within which bounds; ``pair`` runs the two sides; ``suite``
compares them; ``report`` writes what was found.
"""
