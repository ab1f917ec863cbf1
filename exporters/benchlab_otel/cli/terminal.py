"""What commands tell people at a terminal, where names and notes from files are text and steer nothing."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from benchlab_otel.cli.errors import plain


def console() -> Console:
    """Where tables are printed; names are text: no markup, commands to the terminal as `plain`."""
    return _Console(highlight=False, markup=False)


class _Console(Console):
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else plain(text), style, control)
