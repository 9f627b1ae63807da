"""A learner and a batch of random images, to test training steps without a dataset."""

from __future__ import annotations

import torch

from training.datasets.classifier_dataset import Batch
from training.pipelines import build
from training.pipelines.engine import Learner
from training.tools.config import Config
from training.tools.distributed import Distributed


def make_learner(config: Config, device: torch.device) -> Learner:
    """A learner with random weights, in training mode."""
    torch.manual_seed(0)
    network = build.init_network(config, fresh=False)
    learner = build.build_learner(config, network, config.crop_spec(), Distributed(0, 1, device))
    learner.network.train()
    return learner


def random_batch(config: Config) -> Batch:
    """A batch of noise with alternating labels."""
    generator = torch.Generator().manual_seed(0)
    count, size = config.optimizer.batch_size, config.size
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    valid = torch.ones(count, dtype=torch.bool)
    return Batch(images, (torch.arange(count) % 2).float(), torch.arange(count), valid, valid, None, [])
