"""A page on one's own machine: images dropped, predicted, shown and deleted."""
