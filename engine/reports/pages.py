"""Pages of HTML that need nothing but themselves, from the templates of this package."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["render"]


def render(template: str, **values: Any) -> str:
    """Fill a template; values are text, never markup, whatever characters they hold.

    Args:
        template: Name of a file in ``engine/templates``.
        values: What it shows; one that it needs and does not get is an error.
    """
    environment = Environment(
        loader=PackageLoader("engine"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(template).render(**values)
