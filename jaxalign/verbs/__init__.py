"""What the verbs of the command line do, each in a file; training has rooms of its own."""
