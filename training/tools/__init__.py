"""What training and inference both need around a network."""
