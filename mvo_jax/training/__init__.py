"""How it learns: losses, optimisers, the step and the loop around it."""
