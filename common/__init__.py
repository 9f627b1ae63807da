"""Infrastructure that every part stands on; knows nothing about faces."""

__version__ = "1.0.0"
