"""Sampling and editing with a trained model, independent of its training."""
