"""Weights in other people's files: safetensors headers, narrow dtypes, directories with shards."""
