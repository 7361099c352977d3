"""What published datasets look like, and how their rows become records."""
