"""What runs in a process of PyTorch's: PyTorch and NumPy, not cllm."""
