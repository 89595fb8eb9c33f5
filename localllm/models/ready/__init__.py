"""Checkpoints whose weights are quantized already: GPTQ, AWQ, FP8, compressed-tensors, bitsandbytes, MLX."""
