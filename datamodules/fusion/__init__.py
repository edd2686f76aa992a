"""Fusion: rows of metadata with pictures, grouped by patient."""
