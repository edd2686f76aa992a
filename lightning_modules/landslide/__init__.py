"""Landslide susceptibility: network, losses, inference, evaluation."""
