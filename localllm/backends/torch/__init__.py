"""Any device torch sees: eager, one verb after another. Slower than kernels of our own, and the same everywhere."""
