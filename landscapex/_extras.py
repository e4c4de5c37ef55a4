"""Optional packages: imported when needed, with the command that brings them if missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from landscapex.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: Its full name.
        extra: The extra of landscapex that the package belongs to.

    Returns:
        The module.

    Raises:
        MissingExtraError: The package, or something that it needs itself, cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"This needs {package}, which cannot be imported ({error}). "
            f"Install it with: pip install 'landscapex[{extra}]'",
            name=error.name,
        ) from error
