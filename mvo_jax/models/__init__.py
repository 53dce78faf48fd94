"""What is learned: Flax modules. Imports nothing of the other rooms."""
