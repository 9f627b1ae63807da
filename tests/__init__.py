"""Tests, in folders like those of the packages; tests/support has what they share."""
