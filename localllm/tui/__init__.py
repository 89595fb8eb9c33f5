"""The terminal application: what a person sees of a daemon. It speaks to one through `localllm.client` only."""
