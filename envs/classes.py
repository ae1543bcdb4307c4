"""Classes of the user's own, which settings name as "module:Class"."""

from __future__ import annotations

import importlib
from typing import TypeVar

from sfrl.envs.names import TrainsOnImportError, in_one_line

T = TypeVar("T")


class ClassError(ValueError):
    """There is no such class. The text, one line, begins with the setting and its value."""


def class_at(setting: str, path: str, base: type[T], base_name: str) -> type[T]:
    """The class at `path`, "module:Class", which derives from `base`.

    Raises:
        ClassError: there is none; the text begins with the setting.
    """
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except TrainsOnImportError as error:
        raise ClassError(f"{setting}={path}: {error}") from error
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ClassError(
            f"{setting}={path}: cannot import {module_name!r} ({in_one_line(error)}); it must be "
            f"the name of a module: of a file where you start, or of an installed one"
        ) from error
    found = getattr(module, class_name, None)
    if found is None:
        raise ClassError(
            f"{setting}={path}: module {module_name!r} has no attribute {class_name!r}"
        )
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ClassError(f"{setting}={path}: {class_name} must be a subclass of {base_name}")
    return found
