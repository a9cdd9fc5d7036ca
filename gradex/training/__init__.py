"""Do it: recipes, and the trainer that follows them."""
