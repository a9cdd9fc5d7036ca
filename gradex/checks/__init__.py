"""What is wrong with a store, or with a model whose gradients are to be taken."""
