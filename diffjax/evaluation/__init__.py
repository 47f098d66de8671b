"""How good are the samples? Fréchet distance between features, and the report built on it.

Import from the modules: `diffjax.evaluation.report.evaluate` is the way in.
"""
