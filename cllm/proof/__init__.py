"""What proves a step right: central differences, how far gradients are from one another."""
