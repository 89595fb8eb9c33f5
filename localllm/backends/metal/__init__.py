"""A model on Apple silicon, by MLX: its own kernels only, whose CPU device runs the same graph on Linux."""
