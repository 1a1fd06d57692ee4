"""Optional packages: what is said where one is missing."""

from __future__ import annotations

import importlib


def how_to_install(extra: str) -> str:
    """A sentence with the commands that install an extra; the package is on no index, so from its checkout.

    Args:
        extra: Name of the extra in `setup.cfg`.
    """
    return (
        f"Install it in the checkout of kmaskformer: `bash scripts/install.sh {extra}` (into its .venv), or "
        f"`pip install -e '.[{extra}]'`."
    )


def missing_extra(extra: str, purpose: str, error: ImportError | None = None) -> ImportError:
    """The error to raise where an optional package cannot be imported.

    Args:
        extra: Name of the extra in `setup.cfg`.
        purpose: What needs it, as the beginning of a sentence.
        error: What Python said.

    Example:
        ```python
        try:
            import av
        except ImportError as error:
            raise missing_extra("video", "Reading videos", error) from error
        ```
    """
    if error is None:
        return ImportError(f"{purpose} needs the extra `{extra}`. {how_to_install(extra)}")
    package = (error.name or f"the extra `{extra}`").partition(".")[0]
    text = f"{purpose} needs {package}, which cannot be imported ({error}). {how_to_install(extra)}"
    return ImportError(text, name=error.name)


def require_extra(extra: str, package: str, purpose: str) -> None:
    """Fails where a package cannot be imported: at the beginning of work whose end needs it.

    Args:
        extra: Name of the extra in `setup.cfg`.
        package: Name of the package as it is imported.
        purpose: What needs it, as the beginning of a sentence.

    Raises:
        ImportError: If it cannot be imported, with what to do.
    """
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise missing_extra(extra, purpose, error) from error
