"""Latent interpolation and directions, and the attributes of images."""

import itertools

import numpy as np
import pytest

from dcgan.exploration import latent_space

T = np.linspace(0, 1, 9)


def test_slerp_meets_both_latents_with_even_steps_and_lengths_between() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 100)).astype(np.float32)
    z_TZ = latent_space.slerp(a, b, T)
    np.testing.assert_allclose(z_TZ[[0, -1]], [a, b], atol=1e-6)
    lengths = np.linalg.norm(z_TZ, axis=1)
    np.testing.assert_allclose(lengths, np.linspace(*np.linalg.norm([a, b], axis=1), 9), rtol=1e-5)
    angles = [np.arccos(p @ q / np.linalg.norm(p) / np.linalg.norm(q)) for p, q in itertools.pairwise(z_TZ)]
    np.testing.assert_allclose(angles, angles[0], rtol=1e-3)  # even steps, unlike those of lerp
    assert np.linalg.norm(latent_space.lerp(a, b, T)[4]) < 0.8 * lengths[4]


def test_slerp_by_hand() -> None:
    found = latent_space.slerp(np.array([2.0, 0.0]), np.array([0.0, 4.0]), np.array([1 / 3]))
    np.testing.assert_allclose(found, [[8 / 3 * np.cos(np.pi / 6), 8 / 3 * np.sin(np.pi / 6)]], rtol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0])
def test_slerp_of_parallel_latents_is_lerp(factor: float) -> None:
    a = np.array([1.0, 2.0, 2.0])
    np.testing.assert_allclose(latent_space.slerp(a, factor * a, T), latent_space.lerp(a, factor * a, T), atol=1e-6)


def test_a_direction_is_the_difference_of_the_means_of_both_ends() -> None:
    z_NZ = np.random.default_rng(0).normal(size=(50, 4))
    value_N = np.random.default_rng(1).permutation(50)
    expected = z_NZ[value_N >= 45].mean(0) - z_NZ[value_N < 5].mean(0)
    np.testing.assert_allclose(latent_space.direction(z_NZ, value_N), expected)


def test_ranks_and_exemplars() -> None:
    assert latent_space.ranks(np.array([5.0, -1.0, 9.0])).tolist() == [0.5, 0.0, 1.0]
    first, second = np.array([0.9, 0.5, 1.0, 0.6]), np.array([0.8, 0.5, 0.1, 0.7])
    assert latent_space.exemplars(first, second, 2).tolist() == [0, 3]  # position 2 is high in one rank only


@pytest.mark.parametrize(("shear", "expected"), [(0.5, 0.5), (0.0, 0.0), (-0.25, -0.25)])
def test_slant_is_the_shear_of_a_stroke(shear: float, expected: float) -> None:
    y, x = np.mgrid[:41, :41]
    stroke = np.abs((x - 20) + shear * (y - 20)) < 2.6  # to the right as y falls, which is upwards
    image = (stroke & (np.abs(y - 20) < 16))[None, :, :, None] * np.uint8(200)
    assert latent_space.slant(image)[0] == pytest.approx(expected, abs=0.02)
    assert latent_space.slant(np.zeros_like(image))[0] == 0.0


def test_mean_level_and_warmth() -> None:
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 0] = (200, 40, 80)
    assert latent_space.mean_level(image).tolist() == [320 / 12]
    assert latent_space.warmth(image).tolist() == [(200 - 80) / 4]
