"""Training an autoencoder, and using one that is trained as the first stage of a diffusion model.

`stage.FirstStage` is what the second stage sees; `experiment.resolve` is the way in for training.
"""
