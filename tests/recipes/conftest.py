"""What tests of recipes share with those of commands."""

from tests.commands.conftest import says  # noqa: F401
