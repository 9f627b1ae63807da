"""Infrastructure shared by all packages; nothing in it is specific to faces."""

__version__ = "1.0.0"
