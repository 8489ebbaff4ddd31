"""Which plan: what each costs in bytes and seconds, and the frontier of those that nothing beats."""
