"""From a config to a trained model: state, train step, loop, checkpoints, parallelism."""
