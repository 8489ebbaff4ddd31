"""What a model is: layers that declare themselves, wired into a straight line; pure data."""
