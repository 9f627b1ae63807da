"""Datasets, augmentation, networks, losses and checkpoints, and the pipelines that train and evaluate with them."""
