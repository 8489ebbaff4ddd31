"""Threads: how many kernels run on, how they wait, whose turn it is, and what a fork leaves of them."""
