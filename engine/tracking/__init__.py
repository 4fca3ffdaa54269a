"""A run as it can be watched: figures in its folder, and wandb as a copy of what is there."""
