"""From a model, images and corruptions to a run on disk."""
