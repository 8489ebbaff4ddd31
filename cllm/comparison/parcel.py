"""What travels to a fresh process: any frozen data, with classes by module and file instead of by value.

It is Python's own pickle, from a process to one that it has started itself; no file is ever read this way.
"""

import base64
import io
import pickle
from types import FunctionType

from cllm.errors import CllmError, ConfigError
from cllm.locate import Place, find, place_of


class _Packer(pickle.Pickler):
    def persistent_id(self, thing):
        if not isinstance(thing, (type, FunctionType)) or thing.__module__ == "builtins":
            return None
        place = place_of(thing)
        return place.module, place.file, place.name


class _Unpacker(pickle.Unpickler):
    def persistent_load(self, place):
        return find(Place(*place))


def pack(what: str, thing) -> str:
    """`thing`, called `what` where it cannot travel, as a line of text.

    Raises
    ------
    ConfigError
        When a class of it is nowhere that another process finds, or it is made of what cannot travel.
    """
    made = io.BytesIO()
    try:
        _Packer(made).dump(thing)
    except CllmError:
        raise
    except Exception as error:  # whatever an object's own way of being written raises
        raise ConfigError(what, "must be made of what another process can be given", f"{type(error).__name__}: {error}",
                          "Give it settings such as numbers, texts, tuples and frozen dataclasses of these.") from error
    return base64.b64encode(made.getvalue()).decode("ascii")


def unpack(text: str):
    """What `pack` wrote; errors as `cllm.locate.find`."""
    return _Unpacker(io.BytesIO(base64.b64decode(text))).load()
