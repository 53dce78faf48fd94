"""Is it the same network? Flax beside PyTorch, stage by stage and step by step.

``suite`` says what is compared and can be imported without torch; ``pair`` runs the two sides;
``report`` writes what was found.
"""
