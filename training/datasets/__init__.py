"""Crops of faces as training samples."""
