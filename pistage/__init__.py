"""Pistage runs pipelines of containers on many machines and never loses track of one."""

__version__ = "0.1.0"
