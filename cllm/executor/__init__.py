"""What runs: operations bound to arrays and called in turn."""
