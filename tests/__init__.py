"""Tests, and what they and the demo are made of."""
