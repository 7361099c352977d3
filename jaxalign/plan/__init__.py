"""A stage's steps compiled for accelerators that are not here, and what that says of memory and time."""
