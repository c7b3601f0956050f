"""Merging on a grid of tokens before self-attention and restoring after it, as in a U-Net."""
