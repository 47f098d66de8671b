"""Evaluation: Fréchet distances between features, likelihood, reconstruction.

Import from the modules; the entry point for samples is `diffjax.evaluation.report.evaluate`.
"""
