"""Proof of the checks: every key of every manifest is misspelt, one at a time, and the checks must see it."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra import links, rules
from tests.infra.manifests import K8S, OVERLAYS, Object, Schemas, overlay, render, title

REFUSED = 0.99
Place = tuple[Any, ...]


def misspelt(key: str) -> str:
    """The last two letters swapped; where they are equal, one of them lost."""
    swapped = key[:-2] + key[-1] + key[-2]
    return swapped if swapped != key else key[:-1]


def places(node: Any, at: Place = ()) -> Iterator[Place]:
    """The way to every key of a document."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*at, key)
            yield from places(value, (*at, key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from places(value, (*at, number))


def mutated(node: Any, place: Place) -> Any:
    """A copy, as shallow as it can be, with the key at `place` misspelt."""
    first, *rest = place
    if isinstance(node, list):
        return [mutated(value, tuple(rest)) if number == first else value for number, value in enumerate(node)]
    if rest:
        return {key: mutated(value, tuple(rest)) if key == first else value for key, value in node.items()}
    return {(misspelt(key) if key == first else key): value for key, value in node.items()}


def refused(schemas: Schemas, items: list[Object], number: int) -> bool:
    item = items[number]
    if next(schemas.errors(item), None) or next(rules.all_of(item), None):
        return True
    return next(links.broken(items), None) is not None


def test_a_misspelt_key_is_refused_wherever_it_is() -> None:
    schemas, tried, passed = Schemas(), 0, []
    done: set[str] = set()
    for name in OVERLAYS:
        items = overlay(name)
        for number, item in enumerate(items):
            same = yaml.dump(item, Dumper=yaml.CSafeDumper)
            if same in done:  # what overlays have in common is tried once
                continue
            done.add(same)
            assert not refused(schemas, items, number), title(item)
            for place in places(item):
                mutant = [*items[:number], mutated(item, place), *items[number + 1 :]]
                tried += 1
                if not refused(schemas, mutant, number):
                    passed.append(f"{name}: {title(item)}: {'.'.join(map(str, place))}")
    print(f"{tried} keys misspelt, {tried - len(passed)} refused; not refused: {passed}")
    assert tried > 2000
    assert len(passed) <= (1 - REFUSED) * tried, passed


@pytest.mark.parametrize("folder", ["base", *(f"overlays/{name}" for name in OVERLAYS), "components/monitoring"])
def test_kustomize_refuses_a_misspelt_key_of_its_own(folder: str, tmp_path: Path) -> None:
    tree = tmp_path / "k8s"
    shutil.copytree(K8S, tree)
    file = tree / folder / "kustomization.yaml"
    original = yaml.safe_load(file.read_text())
    through = tree / ("overlays/eks" if folder.startswith("components") else folder)
    for key in original:
        file.write_text(yaml.safe_dump(mutated(original, (key,))))
        with pytest.raises(subprocess.CalledProcessError):
            render(through)
