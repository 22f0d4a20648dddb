"""Token reduction methods, one paper a file."""
