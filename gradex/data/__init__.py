"""What we learn from: rows, sources, tokens, subsets, metrics."""
