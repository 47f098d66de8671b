"""A run on disk: checkpoints, averages, the folder itself."""
