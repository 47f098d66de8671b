"""A trained model without its training."""
