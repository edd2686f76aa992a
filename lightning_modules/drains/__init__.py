"""Drain conditions: prompts, detectors, drawing, matching."""
