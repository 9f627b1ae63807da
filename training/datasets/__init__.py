"""Face crops as training and validation samples."""
