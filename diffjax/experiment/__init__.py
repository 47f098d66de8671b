"""Resolves a config into functions; the only package that reads configs."""
