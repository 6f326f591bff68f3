"""From a name such as ``cbd`` or ``cbd[beta=1e-3]`` to an object, ours or a third party's.

An entry point of the group ``backdoorbench_ext.<kind>`` names a package; each module in it is one
entry, known by its file name and imported only when asked for. ``add_file`` registers a single
file, which is what ``--plugin FILE`` does.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import InputError, nearest, told

# the class that the one class of a file derives from, and where it stands: imported when needed
BASES = {
    "attacks": ("backdoorbench_ext.api", "Attack"),
    "defenses": ("backdoorbench_ext.api", "Defense"),
    "executors": ("backdoorbench_ext.executors", "Executor"),
}
# the name of the one object of a file
OBJECTS = {"benchmarks": "SUITE", "metrics": "METRIC"}
# attacks of other toolboxes: "record:FOLDER"
SCHEMES = {
    ("attacks", "record"): "backdoorbench_ext.toolbox.attacks",
    ("attacks", "backdoorbench"): "backdoorbench_ext.toolbox.attacks",
    ("defenses", "backdoorbench"): "backdoorbench_ext.toolbox.defenses",
}
# what stands in quotes is text: brackets and commas in it are a path's own
QUOTES = ("'", '"')
# letters of an option's value
LONGEST = 2000
# how the modules of files begin
PLUGIN = "backdoorbench_ext_plugin_"
# (kind, name) -> dotted module, from add_file
_plugins: dict[tuple[str, str], str] = {}


@lru_cache(maxsize=8)
def _installed(kind: str) -> dict[str, str]:
    """What installed packages provide; looked up once a process, since asking for entry points
    reads the metadata of every package there is.
    """
    paths: dict[str, str] = {}
    for point in entry_points(group=f"backdoorbench_ext.{kind}"):
        # found, not imported: a list of names needs no PyTorch
        package = importlib.util.find_spec(point.value)
        for info in pkgutil.iter_modules((package and package.submodule_search_locations) or []):
            path = f"{point.value}.{info.name}"
            if not info.ispkg and paths.setdefault(info.name, path) != path:
                raise InputError(
                    f"two {kind} are called {info.name!r}: {paths[info.name]} and {path}"
                )
    return paths


def modules(kind: str) -> dict[str, str]:
    """File name -> dotted module of every entry of ``kind`` ("attacks", "defenses", "benchmarks");
    imports none of them.
    """
    return dict(
        sorted(
            (
                _installed(kind) | {name: path for (k, name), path in _plugins.items() if k == kind}
            ).items()
        )
    )


def source(dotted: str) -> Path | None:
    """The file of a module, which is not imported, nor is the package that it lies in."""
    if dotted in sys.modules:
        return Path(sys.modules[dotted].__file__ or "")
    package, _, name = dotted.rpartition(".")
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or []:
        if (Path(folder) / f"{name}.py").is_file():
            return Path(folder) / f"{name}.py"
    return None


def fingerprint() -> str:
    """A digest of all code that decides what a method's name stands for: ours, and the methods."""
    hashed = hashlib.sha256()
    core = sorted(Path(__file__).parent.glob("*.py"))
    methods = [
        source(dotted) for kind in ("attacks", "defenses") for dotted in modules(kind).values()
    ]
    for file in [*core, *methods]:
        hashed.update(file.read_bytes() if file else b"")
    return hashed.hexdigest()[:16]


def module(kind: str, name: str) -> ModuleType:
    """The module that defines an entry.

    Raises:
        InputError: nobody provides the name, or its file cannot be imported.
    """
    known = modules(kind)
    if name not in known:
        raise nearest(name, known, kind)
    try:
        return importlib.import_module(known[name])
    except Exception as error:
        raise InputError(
            f"{kind} {name!r} ({known[name]}) cannot be imported: {told(error)}"
        ) from error


def methods(mod: ModuleType, kind: str) -> list[type[Any]]:
    """The classes of that kind that a module itself defines."""
    own = [c for _, c in inspect.getmembers(mod, inspect.isclass) if c.__module__ == mod.__name__]
    if not own:
        return []
    where, name = BASES[kind]
    base = getattr(importlib.import_module(where), name)
    return [c for c in own if issubclass(c, base) and not inspect.isabstract(c)]


def get_class(kind: str, name: str) -> type[Any]:
    """The one class of the file called ``name``."""
    mod = module(kind, name)
    own = methods(mod, kind)
    if len(own) != 1:
        raise InputError(f"{mod.__file__} must define one {BASES[kind][1]}, it defines {len(own)}")
    return own[0]


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """``cbd[beta=1e-3, variant=release]`` -> ("cbd", {"beta": 0.001, "variant": "release"}); a bare
    word is a string. ``folder:'a,b[c]'`` is a path with commas and brackets.

    Raises:
        InputError: no options in brackets, one twice, or one too long.
    """
    text = text.strip()
    start = next((i for i, letter in _outside_quotes(text) if letter == "["), len(text))
    name = _unquoted(text[:start])
    rest = text[start:]
    if not rest:
        return name, {}
    hint = "; a path with brackets or commas goes in quotes: folder:'a[b]'" if ":" in name else ""
    if not rest.endswith("]"):
        raise InputError(f"{text!r}: the options must end in ']'{hint}")
    options: dict[str, Any] = {}
    for part in split(rest[1:-1]):
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier():
            raise InputError(f"{text!r}: expected option=value, not {part!r}{hint}")
        if key.strip() in options:
            raise InputError(f"{text!r}: {key.strip()!r} is given twice")
        options[key.strip()] = _value(value.strip())
    return name, options


def _unquoted(name: str) -> str:
    """``folder:'a,b'`` -> ``folder:a,b``."""
    scheme, colon, path = name.partition(":")
    for before, quoted in (("", name), (scheme + colon, path)):
        if len(quoted) > 1 and quoted[0] in QUOTES and quoted[0] == quoted[-1]:
            return before + quoted[1:-1]
    return name


def _value(text: str) -> Any:
    """A number, a tuple and the like as Python writes them; everything else is a string."""
    if len(text) > LONGEST:
        raise InputError(f"a value of {len(text)} letters is too long: {text[:50]}...")
    try:
        with warnings.catch_warnings():
            # of backslashes in paths
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def join(name: str, options: Mapping[str, Any]) -> str:
    """The text that ``parse`` takes apart.

    Raises:
        InputError: a path with brackets or commas and both kinds of quotes.
    """
    scheme, colon, path = name.partition(":")
    if colon and re.search(r"[\[\],]", path):
        mark = '"' if "'" in path else "'"
        if mark in path:
            raise InputError(f"{path}: a path with brackets or commas may hold one kind of quotes")
        name = f"{scheme}:{mark}{path}{mark}"
    told = ",".join(f"{key}={_written(value)}" for key, value in options.items())
    return f"{name}[{told}]" if options else name


def _written(value: Any) -> str:
    """A value as ``parse`` reads it, in quotes where it must be."""
    try:
        plain = parse(f"x[v={value}]")[1] == {"v": value}
    except InputError:
        plain = False
    return str(value) if plain or not isinstance(value, str) else repr(value)


def split(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and quotes: ``a[x=1,y=2],b`` ->
    ["a[x=1,y=2]", "b"].
    """
    parts = []
    start = 0
    depth = 0
    for place, letter in _outside_quotes(text):
        if letter in "[]":
            depth = max(0, depth + (1 if letter == "[" else -1))
        elif letter == "," and not depth:
            parts.append(text[start:place])
            start = place + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def _outside_quotes(text: str) -> Iterator[tuple[int, str]]:
    """The letters that stand outside quotes, with their places; a quote without a partner is a
    letter.
    """
    place = 0
    while place < len(text):
        end = text.find(text[place], place + 1) if text[place] in QUOTES else -1
        if end < 0:
            yield place, text[place]
        place = max(place, end) + 1


def create(kind: str, text: str) -> Any:
    """``cbd`` -> CBD(); ``cbd[beta=1e-3]`` -> CBD(beta=1e-3).

    Raises:
        InputError: an unknown name (with the nearest one), an unknown option, a value of the wrong
            type or out of range.
    """
    name, options = parse(text)
    scheme, colon, rest = name.partition(":")
    try:
        if colon and (kind, scheme) in SCHEMES:
            return importlib.import_module(SCHEMES[kind, scheme]).made(scheme, rest, options)
    except ValueError as error:
        raise InputError(str(error)) from None
    cls = get_class(kind, name)
    known = list(inspect.signature(cls).parameters)
    for option in options:
        if option not in known:
            raise nearest(option, known, f"options of {name}")
    try:
        return cls(**options)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    # a plugin's own
    except Exception as error:
        raise InputError(f"{name} cannot be made: {told(error)}") from error


def lengths(kind: str, name: str) -> set[str]:
    """The options of a method that are lengths of a long training, which ``--scale`` shortens.

    Raises:
        InputError: an unknown name.
    """
    return {f.name for f in fields(get_class(kind, name)) if f.metadata.get("length")}


def add_file(path: Path) -> list[tuple[str, str]]:
    """Register one Python file under its name, as whatever it defines, and the networks that it
    registers in timm under theirs; the (kind, name) pairs that it adds.

    Raises:
        InputError: the file is missing, cannot be imported, defines nothing of these kinds, or
            takes a name that is in use.
    """
    if not path.is_file():
        raise InputError(f"plugin {path}: no such file")
    dotted = f"{PLUGIN}{path.stem}"
    spec = importlib.util.spec_from_file_location(dotted, path)
    if spec is None or spec.loader is None:
        raise InputError(f"plugin {path}: not a Python file")
    networks = _networks(path)
    for name in networks:
        if _plugins.get(("models", name)) != dotted and _is_network(name):
            raise InputError(f"plugin {path}: there is a network {name!r}; rename the function")
    mod = importlib.util.module_from_spec(spec)
    sys.modules[dotted] = mod
    try:
        with warnings.catch_warnings():
            # timm's word on a file that is read again
            warnings.filterwarnings("ignore", "Overwriting")
            spec.loader.exec_module(mod)
    # a file may do anything, even end the process
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        raise InputError(f"plugin {path} cannot be imported: {told(error)}") from error
    kinds = [kind for kind in BASES if methods(mod, kind)]
    kinds += [kind for kind, name in OBJECTS.items() if hasattr(mod, name)]
    if not kinds and not networks:
        raise InputError(
            f"plugin {path} defines no Attack, Defense, Executor, SUITE, METRIC or network"
        )
    for kind in kinds:
        if modules(kind).get(path.stem, dotted) != dotted:
            raise InputError(f"plugin {path}: {kind} already have a {path.stem!r}; rename the file")
    found = [(kind, path.stem) for kind in kinds] + [("models", name) for name in networks]
    _plugins.update(dict.fromkeys(found, dotted))
    return found


def _networks(path: Path) -> list[str]:
    """The functions of a file that are decorated with timm's ``register_model``."""
    try:
        tree = ast.parse(path.read_bytes())
    # importing it will say so
    except (OSError, SyntaxError, ValueError):
        return []
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [
        function.name
        for function in functions
        if any(ast.unparse(own).endswith("register_model") for own in function.decorator_list)
    ]


def _is_network(name: str) -> bool:
    from .models import known

    return bool(known().is_model(name))


def added() -> tuple[Path, ...]:
    """The files that ``add_file`` was given."""
    files = (source(dotted) for dotted in _plugins.values())
    return tuple(dict.fromkeys(file for file in files if file))


def called(cls: type[Any]) -> str:
    """The name of a method's class: that of its file."""
    return cls.__module__.rpartition(".")[2].removeprefix(PLUGIN)
