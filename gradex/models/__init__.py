"""What learns: base models of three families, their losses and scores."""
