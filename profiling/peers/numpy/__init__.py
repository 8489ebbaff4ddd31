"""What runs in a process of NumPy's: what a NumPy user would write."""
