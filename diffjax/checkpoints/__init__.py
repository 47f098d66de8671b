"""A run on disk: checkpoints, EMA snapshots, the run directory."""
