"""Fusion: a forest on metadata, a network on pictures, and rules that join them."""
