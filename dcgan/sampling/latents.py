"""Latent vectors as a pure function of their seed. They do not depend on batches, workers or order.

Philox-4x64 is counter-based: its n-th block of four 64-bit words is a function of (key, n). Each latent takes the same
number of blocks: seed i owns the blocks [i * blocks, (i + 1) * blocks). So one vectorised call gives any contiguous
range of seeds. Box-Muller in float64, rounded to float32, turns words into normal values.

Shapes: N latents, Z latent size.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; Box & Muller 1958.
"""

import numpy as np

MAX_SEED = 2**63 - 1  # the manifest's `seed` column is int64
GENERATION = 0  # the stream of published images
TRAINING = 1  # the stream of training, so no published latent was trained on

_KEY = 0x67616E6D696C6C  # "ganmill"
_WORDS_PER_BLOCK = 4


def normal(seed_start: int, count: int, z_dim: int, stream: int = GENERATION, run: int = 0) -> np.ndarray:
    """The latents of the seeds [seed_start, seed_start + count).

    Args:     stream: GENERATION or TRAINING. run: the seed of the training run; 0 for GENERATION.
    Returns:  z_NZ, float32, standard normal. The DCGAN paper draws from a uniform distribution; its successors do not.
    """
    pairs = -(-z_dim // 2)
    blocks = -(-2 * pairs // _WORDS_PER_BLOCK)
    key = [_KEY + (stream << 60), run]
    bits = np.random.Philox(key=np.array(key, np.uint64), counter=seed_start * blocks)
    words = bits.random_raw(count * blocks * _WORDS_PER_BLOCK).reshape(count, -1)
    radius = np.sqrt(-2.0 * np.log(((words[:, :pairs] >> np.uint64(11)) + np.uint64(1)) * 2.0**-53))  # words as (0, 1]
    angle = (2.0 * np.pi * 2.0**-53) * (words[:, pairs : 2 * pairs] >> np.uint64(11))
    z_NZ = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return np.ascontiguousarray(z_NZ[:, :z_dim], dtype=np.float32)
