"""Shows what a run found: a self-contained HTML page and the model card of an adapter."""
