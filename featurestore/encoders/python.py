"""An encoder of your own: py:package.module:factory or py:/path/to/file.py:factory."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from data.digest import file_digest
from featurestore.encoder import Encoder, EncoderOptions
from featurestore.errors import EncoderError, UnknownEncoder
from featurestore.spec import EncoderSpec
from featurestore.weights import first_line

_METHODS = ("read", "collate", "encode", "encode_reference")


def load(name: str, options: EncoderOptions) -> Encoder:
    """Return the encoder that a user's factory makes.

    Parameters
    ----------
    name
        ``package.module:factory`` or ``/path/to/file.py:factory``. The factory is called with `options` and
        returns an object with the methods of `featurestore.encoder.Encoder`.
    options
        Handed to the factory as they are.

    Raises
    ------
    UnknownEncoder
        If there is no such module, file or factory.
    EncoderError
        If importing or calling it fails, or what it returns is no encoder; the cause is attached.
    """
    encoder = f"py:{name}"
    where, colon, factory_name = name.rpartition(":")
    if not colon or not where or not factory_name:
        raise UnknownEncoder(f"{encoder!r}: expected py:package.module:factory or py:/path/to/file.py:factory")
    module = _module(encoder, where)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise UnknownEncoder(f"{encoder}: {where} has no function {factory_name!r}")
    try:
        made: Encoder = factory(options)
    except Exception as error:  # a stranger's code may raise anything
        if isinstance(error, EncoderError):
            raise
        raise EncoderError(f"{encoder}: {factory_name} raised {type(error).__name__}: {first_line(error)}") from error
    missing = [method for method in _METHODS if not callable(getattr(made, method, None))]
    if missing or not isinstance(getattr(made, "spec", None), EncoderSpec):
        what = f"without {', '.join(missing)}" if missing else "whose `spec` is no EncoderSpec"
        raise EncoderError(f"{encoder}: {factory_name} returned {type(made).__name__}, {what}")
    return made


def _module(encoder: str, where: str) -> ModuleType:
    try:
        return _module_of_file(Path(where).expanduser()) if where.endswith(".py") else import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
            raise UnknownEncoder(f"{encoder}: no module {where!r} on the path of this Python") from error
        raise EncoderError(f"{encoder}: {where} needs {error.name!r}, which is not installed") from error
    except FileNotFoundError as error:
        raise UnknownEncoder(f"{encoder}: no file {where}") from error
    except Exception as error:  # a stranger's code may raise anything
        raise EncoderError(f"{encoder}: importing it raised {type(error).__name__}: {first_line(error)}") from error


def _module_of_file(path: Path) -> ModuleType:
    # Named after its content: two files of one name do not meet in sys.modules.
    name = f"_frostline_{path.stem}_{file_digest(path).hex()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
