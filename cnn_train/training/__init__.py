"""Training: the loop on Lightning, its recipe, and the callbacks that observe it."""
