"""What can be decided about a training step: a plan, a tree of segments with a decision for each value; pure data."""
