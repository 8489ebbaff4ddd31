"""What a plan means: operations in order, buffers with lifetimes, their places in one slab, the bytes of all."""
