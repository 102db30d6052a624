"""docs/settings.md holds the settings classes as they are."""

import pytest

from docs import write_settings
from jobs.command.settings import JobSettings


def test_the_page_is_current() -> None:
    assert write_settings.PAGE.read_text() == write_settings.page(), "docs/settings.md is stale; run make docs"


@pytest.mark.parametrize("settings", write_settings.SETTINGS)
def test_every_setting_has_a_meaning_and_each_exemption_is_a_setting(settings: type[JobSettings]) -> None:
    assert all(field.description for field in settings.model_fields.values())
    assert (settings.changeable or frozenset()) <= settings.model_fields.keys()


def test_the_page_states_choices_ranges_and_resume() -> None:
    lines = write_settings.page().splitlines()
    assert "| `--count` | required | from 1 to 1,000,000,000,000 | number of images, exactly | yes |" in lines
    assert any(line.startswith("| `--channels` |  | `1`, `3` |") for line in lines)
    assert any(line.startswith("| `--share` | `0.5` | above 0 to 1 |") for line in lines)
