"""Bytes on disk: GGUF, safetensors and the block types of quantized weights."""
