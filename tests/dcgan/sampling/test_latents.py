"""Latents are a pure function of the seed, equal on every machine, and standard normal."""

import itertools
import math

import numpy as np
import pytest

from dcgan.sampling import latents
from dcgan.sampling.latents import GENERATION, MAX_SEED, TRAINING

Z_DIMS = (1, 2, 3, 4, 5, 7, 64, 100, 101)
STARTS = (0, 1, 1000, 2**31 - 2, 2**32 - 2, 2**53 - 1, 2**62, MAX_SEED - 5)

# From the first version. They must never change, because published images are identified by their seeds.
VECTORS = [
    ((0, 2, 3, GENERATION, 0), [[0.111081697, -0.242180392, 0.526411951], [-0.565636218, 1.404946923, 0.503927350]]),
    ((12345, 1, 4, GENERATION, 0), [[-0.051468197, 0.113278203, -0.075004101, 0.152554393]]),
    ((MAX_SEED, 1, 4, GENERATION, 0), [[-0.887964010, 0.376944363, 2.439385414, -1.196146846]]),
    ((0, 1, 4, TRAINING, 0), [[0.761642218, 0.855827093, 0.380829155, -0.020875053]]),
    ((0, 1, 4, TRAINING, 7), [[1.914606810, -0.069386899, 0.906238437, 1.003983736]]),
    ((MAX_SEED, 1, 4, TRAINING, MAX_SEED), [[-0.658589184, -0.700500786, -0.324923396, -0.188558623]]),
]


@pytest.mark.parametrize(("arguments", "expected"), VECTORS)
def test_published_latents_never_change(arguments: tuple[int, int, int, int, int], expected: list[list[float]]) -> None:
    assert np.allclose(latents.normal(*arguments), expected, rtol=0, atol=1e-6)


def test_the_first_and_last_values_of_latents_of_size_100_never_change() -> None:
    z_NZ = latents.normal(0, 2, 100)
    assert np.allclose(z_NZ[0, :3], [-0.38008758, -0.2819785, -1.548063], rtol=0, atol=1e-6)
    assert np.allclose(z_NZ[1, -2:], [-1.280674, -1.1583323], rtol=0, atol=1e-6)


@pytest.mark.parametrize("z_dim", [1, 5, 8, 100])
@pytest.mark.parametrize("seed", [0, 3, MAX_SEED])
def test_a_latent_is_box_muller_of_its_own_philox_blocks(seed: int, z_dim: int) -> None:
    """An independent implementation, word by word, from the counter of the seed."""
    pairs = math.ceil(z_dim / 2)
    blocks = math.ceil(2 * pairs / 4)
    bits = np.random.Philox(key=np.array([int.from_bytes(b"ganmill", "big"), 0], np.uint64))
    words = [int(word) >> 11 for word in bits.advance(seed * blocks).random_raw(4 * blocks)]
    radius = [math.sqrt(-2 * math.log((word + 1) / 2**53)) for word in words[:pairs]]
    angle = [2 * math.pi * word / 2**53 for word in words[pairs : 2 * pairs]]
    z = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
    z += [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
    assert np.allclose(latents.normal(seed, 1, z_dim)[0], z[:z_dim], rtol=0, atol=1e-6)


@pytest.mark.parametrize("z_dim", Z_DIMS)
@pytest.mark.parametrize("start", STARTS)
def test_a_range_equals_its_single_seeds_and_any_split(start: int, z_dim: int) -> None:
    whole = latents.normal(start, 6, z_dim)
    assert (whole.shape, whole.dtype, whole.flags["C_CONTIGUOUS"]) == ((6, z_dim), np.float32, True)
    singles = np.concatenate([latents.normal(start + n, 1, z_dim) for n in range(6)])
    assert np.array_equal(whole, singles)
    for cut in range(1, 6):
        split = [latents.normal(start, cut, z_dim), latents.normal(start + cut, 6 - cut, z_dim)]
        assert np.array_equal(np.concatenate(split), whole)


def test_a_part_of_a_large_range_equals_the_part_drawn_alone() -> None:
    whole = latents.normal(10**9, 5000, 100)
    assert np.array_equal(latents.normal(10**9 + 4321, 77, 100), whole[4321:4398])


@pytest.mark.parametrize("z_dim", [4, 100, 101])
def test_latents_differ_by_seed_stream_and_run(z_dim: int) -> None:
    points = itertools.product((0, 1, 2**32, MAX_SEED), (GENERATION, TRAINING), (0, 1, 2**32, MAX_SEED))
    drawn = [latents.normal(seed, 1, z_dim, stream, run).tobytes() for seed, stream, run in points]
    assert len({*drawn}) == len(drawn) == 32


def test_latents_are_standard_normal_and_independent() -> None:
    z_NZ = latents.normal(0, 40_000, 20).astype(np.float64)
    assert np.isfinite(z_NZ).all()
    # bounds: five standard errors of each moment's estimate, over 20 columns
    slack = 5 / math.sqrt(40_000)
    assert np.abs(z_NZ.mean(0)).max() < slack
    assert np.abs(z_NZ.var(0) - 1).max() < math.sqrt(2) * slack
    assert np.abs((z_NZ**3).mean(0)).max() < math.sqrt(15) * slack
    assert np.abs((z_NZ**4).mean(0) - 3).max() < math.sqrt(96) * slack
    between_columns = np.corrcoef(z_NZ.T) - np.eye(20)
    between_seeds = (z_NZ[:-1] * z_NZ[1:]).mean(0)
    assert max(np.abs(between_columns).max(), np.abs(between_seeds).max()) < slack
    assert abs((np.abs(z_NZ) < 1).mean() - 0.682689) < 5 * math.sqrt(0.6827 * 0.3173 / z_NZ.size)
    assert 4.0 < np.abs(z_NZ).max() < 6.5
