"""A small convolutional classifier. It measures how useful images are as training data.

Trained on synthetic images and tested on real images, its accuracy is the classification accuracy score. Trained on
real images, its last hidden layer gives features that separate the classes.

Source: Ravuri & Vinyals 2019, arXiv:1905.10887, for the score. Their network is a ResNet-50 on ImageNet; this one is
our own.

Shapes: B images of H = W pixels and C channels, K classes.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

FEATURES = 128
BATCH = 128
PROTOCOL = (
    "3x3 convolutions with batch norm, ReLU and max pooling (32, 64, 128, 128 channels) down to 8 pixels or fewer, "
    f"{FEATURES} features, dropout 0.5; Adam, one cycle up to 2e-3, batches of {BATCH}, float32, unaugmented"
)
_LEARNING_RATE = 2e-3
_SMALLEST = 8


class Classifier(nn.Module):
    """Images in [-1, 1] to logits."""

    def __init__(self, image_size: int, channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        wide = 32
        while image_size > _SMALLEST:
            layers += [nn.Conv2d(channels, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            image_size, channels, wide = image_size // 2, wide, min(2 * wide, 128)
        layers += [nn.Flatten(), nn.Linear(channels * image_size**2, FEATURES), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(FEATURES, num_classes))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.features(images_BCHW))
        return logits_BK


def train(
    image_shape: tuple[int, int, int],
    num_classes: int,
    batches: Iterator[tuple[np.ndarray, np.ndarray]],
    steps: int,
    seed: int,
) -> Classifier:
    """A classifier, trained for `steps` steps, in eval mode.

    Args: image_shape: height, width, channels. batches: pairs of images_BHWC, uint8, and label_B, int64; at least
          `steps` of them. seed: decides initial weights and dropout; torch's global random state stays unchanged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(image_shape[0], image_shape[2], num_classes).to(memory_format=torch.channels_last)
        adam = torch.optim.Adam(classifier.parameters(), fused=True)
        rate = torch.optim.lr_scheduler.OneCycleLR(adam, _LEARNING_RATE, total_steps=max(2, steps))
        for _ in range(steps):
            images_BHWC, label_B = next(batches)
            loss = nn.functional.cross_entropy(classifier(scaled(images_BHWC)), torch.from_numpy(label_B))
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            rate.step()
    return classifier.eval()


@torch.inference_mode()
def classify(classifier: Classifier, images_BHWC: np.ndarray) -> np.ndarray:
    """label_B, the most likely class of each uint8 image."""
    label_B: np.ndarray = classifier(scaled(images_BHWC)).argmax(1).numpy()
    return label_B


def scaled(images_BHWC: np.ndarray) -> Tensor:
    """Uint8 images as images_BCHW, float32 in [-1, 1]."""
    return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).float() / 127.5 - 1.0
