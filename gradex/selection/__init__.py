"""What to choose: searches over subsets, and the choice as a file."""
