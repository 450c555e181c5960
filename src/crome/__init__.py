"""Adapt frozen vision-language models to a task by training only a small cross-modal adapter."""

__version__ = "0.1.0"
