"""Train vision models stage by stage without losing the rare classes."""

__version__ = "0.1.0"
