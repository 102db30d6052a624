"""docs/settings.md holds the settings classes as they are."""

import pytest

from jobs.command import settings_page


def test_the_page_is_current() -> None:
    assert settings_page.PAGE.read_text() == settings_page.page(), "docs/settings.md is stale; run make docs"


@pytest.mark.parametrize("command", settings_page.COMMANDS)
def test_every_setting_has_a_meaning_and_each_exemption_is_a_setting(command: str) -> None:
    settings = settings_page._settings_class(command)
    assert all(field.description for field in settings.model_fields.values())
    assert (settings.changeable or frozenset()) <= settings.model_fields.keys()


def test_the_page_states_choices_ranges_and_resume() -> None:
    lines = settings_page.page().splitlines()
    assert "| `--count` | required | from 1 to 1,000,000,000,000 | how many images, exactly | yes |" in lines
    assert any(line.startswith("| `--channels` |  | `1`, `3` |") for line in lines)
    assert any(line.startswith("| `--share` | `0.5` | above 0 to 1 |") for line in lines)
