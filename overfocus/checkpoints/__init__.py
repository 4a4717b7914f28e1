"""From a file to a model that is ready to be looked at: reading, recognising and loading checkpoints."""
