"""How the model would move: per-sample gradients, their sketches, and where they are kept."""
