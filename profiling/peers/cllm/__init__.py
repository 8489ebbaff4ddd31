"""What runs in a process of cllm's."""
