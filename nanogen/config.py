"""Configs: frozen typed classes (chz), presets written in Python, `a.b=c` overrides, YAML dumps.

A config class describes one part and has a `build` method. A field made by `choice(kind)` holds
any registered part of that kind and is set by its name:

    tokenizer=pixels tokenizer.patch=4

YAML is only ever a dump (`run.yaml`), complete and loadable. It holds names, never import paths.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import chz
import chz.factories
import yaml
from chz.blueprint import (
    Castable,
    ConstructionException,
    ExtraneousBlueprintArg,
    InvalidBlueprintArg,
    MissingBlueprintArg,
)
from chz.tiepin import CastError

from nanogen import registry
from nanogen.errors import ConfigError

TYPE = "type"
"""the key under which a dump names a registered part"""

Flat = dict[str, Any]
"""a config as `{"a.b": value}`; a registered part stands as `{"a": class}` beside its own fields"""

SWITCHED = ("on", "off", "None")
"""what a part that can be off is set to; one that is off is None in every listing of values"""

T = TypeVar("T")


class Choice(chz.factories.MetaFactory):
    """Looks a part up by its registered name; nothing else can be named (no import path, no
    expression).
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def unspecified_factory(self) -> None:
        return None

    def from_string(self, factory: str) -> Callable[..., Any]:
        return self.named(factory)

    def named(self, name: str) -> type:
        return registry.get(self.kind, name)

    def perform_cast(self, value: str) -> Any:
        raise CastError(f"a {self.kind} is made of its fields")


class Switch(chz.factories.MetaFactory):
    """A part that is `on` (with its defaults, or with fields of its own) or `off`."""

    def __init__(self, target: type) -> None:
        super().__init__()
        self.target = target

    def unspecified_factory(self) -> Callable[..., Any]:
        return self.target

    def from_string(self, factory: str) -> Callable[..., Any]:
        return self.named(factory) or (lambda: None)

    def named(self, name: str) -> type | None:
        if name not in SWITCHED:
            raise ConfigError(f"{name!r}: choose on or off")
        return self.target if name == "on" else None

    def perform_cast(self, value: str) -> Any:
        raise CastError("a term is made of its fields")


def choice(kind: str) -> Any:
    """A field that holds a registered part of a kind."""
    return chz.field(meta_factory=Choice(kind))


def switches(kind: str) -> type:
    """A config class with one optional field for each registered part of a kind, all off."""
    parts = registry.entries(kind)
    namespace: dict[str, Any] = {
        "__annotations__": {part.name: Any for part in parts},
        "__doc__": f"Which of the registered {kind}s are on.",
        "__module__": __name__,
    }
    for part in parts:
        namespace[part.name] = chz.field(default=None, meta_factory=Switch(part.target))
    return chz.chz(type(f"{kind.capitalize()}s", (), namespace))


def flatten(config: object, prefix: str = "") -> Flat:
    """Every value of a config, by its dotted path."""
    flat: Flat = {}
    for name, spec in chz.chz_fields(config).items():
        value, path = getattr(config, name), f"{prefix}{name}"
        if not chz.is_chz(value):
            flat[path] = value
            continue
        if isinstance(spec.meta_factory, Choice | Switch):
            flat[path] = type(value)
        flat |= flatten(value, f"{path}.")
    return flat


def make(target: type[T], flat: Mapping[str, Any]) -> T:
    """The config of class `target` with the values of `flat`; the inverse of `flatten`."""
    return _made(_blueprint(target, flat))


def override(config: T, arguments: Iterable[str]) -> T:
    """A config with `a.b=c` arguments applied on top.

    A part that is chosen anew starts from its own defaults; a field of a part that is off turns
    it on.
    """
    target, flat = type(config), flatten(config)
    given = dict(_split(argument) for argument in arguments)
    # A part comes before its own fields, wherever it stands in the line.
    for path in sorted(given, key=lambda path: path.count(".")):
        for part in _parts_above(path, flat):
            switch = _field(target, part, flat)
            if flat[part] is None and part not in given and isinstance(switch.meta_factory, Switch):
                flat[part] = switch.meta_factory.target
        field = _field(target, path, flat)
        if field is not None and isinstance(field.meta_factory, Choice | Switch):
            flat = {known: v for known, v in flat.items() if not f"{known}.".startswith(f"{path}.")}
            flat[path] = _chosen(path, given, field.meta_factory)
        else:
            # A path without a field goes on as it is: chz knows what was meant.
            flat[path] = given[path] if field is None else _cast(path, given[path], field.x_type)
    return make(target, flat)


def _chosen(path: str, given: Mapping[str, str], factory: Choice | Switch) -> type | None:
    """The part that `path=name` names, None for one that is off; ConfigError where a part is off
    and has fields set.
    """
    name = given[path]
    if isinstance(factory, Switch) and name not in SWITCHED:
        raise ConfigError(f"{path}={name}: choose on or off")
    part = factory.named(name)
    own = [field for field in given if field.startswith(f"{path}.")]
    if part is None and own:
        raise ConfigError(
            f"{path}={name} contradicts {own[0]}={given[own[0]]}; leave one of them out"
        )
    return part


def _split(argument: str) -> tuple[str, str]:
    path, equals, value = argument.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.[\w-]+)*", path):
        raise ConfigError(f"{argument!r} is not an override; write field=value, for example seed=1")
    return path, value


def _parts_above(path: str, flat: Flat) -> list[str]:
    names = path.split(".")
    above = [".".join(names[:count]) for count in range(1, len(names))]
    return [part for part in above if part in flat]


def _field(target: Any, path: str, flat: Flat) -> Any:
    """The chz field at a path, None where there is none; `flat` says which parts are chosen."""
    names, field = path.split("."), None
    for depth, name in enumerate(names, start=1):
        field = target.__chz_fields__.get(name) if chz.is_chz(target) else None
        if field is None:
            return None
        target = flat.get(".".join(names[:depth])) or field.x_type
    return field


def _cast(path: str, text: str, kind: Any) -> Any:
    """The value of type `kind` that a text stands for."""
    if chz.is_chz(kind):
        first = next(iter(kind.__chz_fields__), "field")
        raise ConfigError(f"{path} is a group of fields; set one of them, such as {path}.{first}")
    # A class of this one field, without a factory: with one, chz takes import paths and code too.
    field = {"__annotations__": {"value": kind}, "value": chz.field(meta_factory=None)}
    probe = chz.chz(type("Value", (), field))
    try:
        return chz.Blueprint(probe).apply({"value": Castable(text)}).make().value
    except InvalidBlueprintArg as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise ConfigError(f"{path}={text} does not fit: {reason[0].lower()}{reason[1:]}") from error


def _blueprint(target: type[T], flat: Mapping[str, Any]) -> chz.Blueprint[T]:
    # A part goes in by name: chz would take a bare class for the value itself.
    values = {
        path: Castable(_switch_name(value)) if isinstance(value, type) else value
        for path, value in flat.items()
    }
    return chz.Blueprint(target).apply(values)


def _switch_name(part: type) -> str:
    entry = registry.entry_of(part)
    return "on" if entry.kind == "term" else entry.name


def _made(blueprint: chz.Blueprint[T]) -> T:
    try:
        made = blueprint.make()
    except MissingBlueprintArg as error:
        missing = ", ".join(re.findall(r"parameter\(s\): (.*)", str(error))) or str(error)
        raise ConfigError(f"not set: {missing}; give each a value, such as name=value") from error
    except (
        ExtraneousBlueprintArg,
        InvalidBlueprintArg,
        ConstructionException,
        TypeError,
        ValueError,
    ) as error:
        raise ConfigError(_one_line(str(error))) from error
    for path, value in flatten(made).items():
        # No comparison refuses NaN, so no check of a range would.
        if isinstance(value, float) and math.isnan(value):
            raise ConfigError(f"{path}=nan is not a number; give it one")
    return made


def _one_line(message: str) -> str:
    """chz explains over several lines; keep the first and its suggestion."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    first = re.sub(r"^Extraneous argument ('.*?') to Blueprint.*$", r"unknown field \1", lines[0])
    hint = [line for line in lines[1:] if line.startswith("Did you mean")]
    return "; ".join([first, *hint[:1]])


def dump(config: object) -> dict[str, Any]:
    """A config as nested plain values; a registered part carries its name under `type`."""
    tree: dict[str, Any] = {}
    for path, value in flatten(config).items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        if isinstance(value, type):
            node[leaf] = {TYPE: registry.entry_of(value).name}
        else:
            node[leaf] = list(value) if isinstance(value, tuple) else value
    return tree


def write(config: object, file: Path) -> None:
    file.write_text(
        yaml.safe_dump(dump(config), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


def read(target: type[T], file: Path) -> T:
    """A config from the YAML that `write` made."""
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file} is not a readable config: {_one_line(str(error))}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} is not a config: it holds {type(tree).__name__}, not fields")
    return from_tree(target, tree)


def from_tree(target: type[T], tree: Mapping[str, Any]) -> T:
    """A config from nested plain values; the inverse of `dump`."""
    return make(target, dict(_leaves(target, tree, "")))


def _leaves(target: Any, tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        path, field = f"{prefix}{name}", target.__chz_fields__.get(name)
        inner = field and field.x_type
        if field is not None and isinstance(field.meta_factory, Choice | Switch):
            inner = _part(path, value, field.meta_factory)
            yield path, inner
            value = {key: item for key, item in (value or {}).items() if key != TYPE}
        if chz.is_chz(inner) and isinstance(value, dict):
            yield from _leaves(inner, value, f"{path}.")
        elif inner is not None:
            yield path, tuple(value) if isinstance(value, list) else value
        elif field is None:
            yield path, value


def _part(path: str, value: Any, factory: Choice | Switch) -> type | None:
    """The registered part that a value of a dump names."""
    if value is None and isinstance(factory, Switch):
        return None
    if not isinstance(value, dict) or not isinstance(value.get(TYPE), str):
        raise ConfigError(f"{path}={value!r} names no part; write {TYPE}: <name> below {path}")
    return (
        factory.target if isinstance(factory, Switch) else registry.get(factory.kind, value[TYPE])
    )


def differences(a: object, b: object) -> list[tuple[str, Any, Any]]:
    """(path, value in a, value in b) of every field that differs; a field that one lacks stands as
    None there.

    Where two parts differ in kind, fields that only one of them has are left out.
    """
    left, right = _named(flatten(a)), _named(flatten(b))
    rows: list[tuple[str, Any, Any]] = []
    parents: list[str] = []
    for path in sorted(left | right):
        if any(path.startswith(f"{parent}.") for parent in parents):
            if path in left and path in right and left[path] == right[path]:
                continue
            if path not in left or path not in right:
                continue
        if left.get(path) != right.get(path):
            rows.append((path, left.get(path), right.get(path)))
            if path in left and path in right and isinstance(flatten(a).get(path), type):
                parents.append(path)
    return rows


def _named(flat: Flat) -> Flat:
    return {
        path: registry.entry_of(value).name if isinstance(value, type) else value
        for path, value in flat.items()
    }


def digest(config: object) -> str:
    """Twelve hex digits that change whenever a value of the config changes."""
    text = json.dumps(dump(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def shown(value: object) -> str:
    """A value as one would write it on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
