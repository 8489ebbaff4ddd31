"""Contestants: what each library does, in a process of its own, and how it is asked."""
