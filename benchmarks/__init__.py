"""Measurements against other libraries and of growth; nothing here is installed with jaxalign."""
