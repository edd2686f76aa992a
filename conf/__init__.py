"""Hydra configs, so that other projects can compose ``pkg://stagewise.conf``."""
