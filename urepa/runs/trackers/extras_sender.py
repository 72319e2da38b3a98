"""The check that an optional package of a tracker is installed."""

from __future__ import annotations

from importlib.util import find_spec

from urepa.core.errors import UserError


def require(package: str) -> None:
    """Raises UserError if the package, which is also the name of the extra that installs it, is missing. Imports
    nothing."""
    if find_spec(package) is None:
        raise UserError(
            f"tracking={package} needs the package {package}, which is not installed: pip install 'urepa[{package}]', "
            f"or pip install {package}"
        )
