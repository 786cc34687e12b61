"""Where settings come from: a model of sections, the environment, a TOML file, and sentences when they do not fit.

Nothing here knows a setting by name. A *leaf* is one setting, named by its path through the sections:
`("kafka", "session_timeout_s")` is `VPP_DISPATCH_KAFKA__SESSION_TIMEOUT_S` in the environment and `session_timeout_s`
under `[kafka]` in the file. The environment wins over the file, the file over the default; a map is replaced whole.
Names that no setting has are refused: a misspelt limit must not become a default without a word.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from vpp_dispatch.errors import ConfigurationError

PREFIX = "VPP_DISPATCH_"
HIDDEN = "hidden"

Model = TypeVar("Model", bound=BaseModel)
SettingPath = tuple[str, ...]


class Section(BaseModel):
    """Base of all sections: frozen, and refusing what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)


def variable(path: SettingPath) -> str:
    """The environment variable of a setting: `("kafka", "group")` -> `VPP_DISPATCH_KAFKA__GROUP`."""
    return PREFIX + "__".join(path).upper()


def leaves(model: type[BaseModel], under: SettingPath = ()) -> Iterator[tuple[SettingPath, FieldInfo]]:
    """All settings of a model with their paths, in the order in which they are written."""
    for name, field in model.model_fields.items():
        section = _section(field)
        if section is None:
            yield (*under, name), field
        else:
            yield from leaves(section, (*under, name))


def read(
    model: type[Model], *, config: Path | None, env: Mapping[str, str], ignore: frozenset[str] = frozenset()
) -> tuple[Model, dict[SettingPath, str]]:
    """Reads and validates the settings.

    Args:
        model: the root section.
        config: a TOML file, or None.
        env: the environment; only names that start with `VPP_DISPATCH_` are looked at, an empty value is not set.
        ignore: names in the environment that are no settings but somebody's.

    Returns:
        The settings, and for each that was set its origin in words ("the environment", or the file's path).

    Raises:
        ConfigurationError: with one sentence per problem: where, what, and what to do.
    """
    known = dict(leaves(model))
    problems: list[str] = []
    origins: dict[SettingPath, str] = {}
    tree: dict[str, Any] = {}
    if config is not None:
        for path, value in _file_values(model, _parse_file(config), config, known, problems):
            _put(tree, path, value)
            origins[path] = str(config)
    for path, value in _environment_values(known, env, ignore, problems):
        _put(tree, path, value)
        origins[path] = "the environment"
    try:
        settings = model.model_validate(tree)
    except ValidationError as error:
        problems.extend(_sentences(error, known, origins))
        raise _refusal(problems) from None  # its text would show values
    if problems:
        raise _refusal(problems)
    return settings, origins


def reference(model: type[BaseModel], sections: Mapping[str, str]) -> str:
    """The Markdown tables of all settings that are not hidden; `sections` has a sentence per top section."""
    out: list[str] = []
    last: str | None = None
    for path, field in leaves(model):
        if is_hidden(field):
            continue
        section = path[0] if len(path) > 1 else ""
        if section != last:
            title = f"`[{section}]`" if section else "General"
            out += ["", f"## {title}", "", sections.get(section, ""), "", "| variable | default | meaning |"]
            out += ["|---|---|---|"]
            last = section
        default = shown(field.get_default(call_default_factory=True))
        meaning = (field.description or "").replace("|", "\\|")
        out.append(f"| `{variable(path)}` | {f'`{default}`' if default else ''} | {meaning} |")
    return "\n".join(out).strip() + "\n"


def is_hidden(field: FieldInfo) -> bool:
    """True for a setting that only tests use; it stands in no reference."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get(HIDDEN))


def shown(value: Any) -> str:
    """A value as one would write it into the environment; empty = not set."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        plain = {key: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for key, v in value.items()}
        return json.dumps(plain) if plain else ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)


def value_of(settings: BaseModel, path: SettingPath) -> Any:
    """The value of one setting."""
    value: Any = settings
    for name in path:
        value = getattr(value, name)
    return value


def _section(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _put(tree: dict[str, Any], path: SettingPath, value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _parse_file(config: Path) -> dict[str, Any]:
    try:
        with config.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(
            f"The configuration file {config} cannot be read ({reason}): give a readable TOML file to --config."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The configuration file {config} is not TOML: {error}. Correct that place."
        ) from error


def _file_values(
    model: type[BaseModel],
    table: Mapping[str, Any],
    config: Path,
    known: Mapping[SettingPath, FieldInfo],
    problems: list[str],
    under: SettingPath = (),
) -> Iterator[tuple[SettingPath, Any]]:
    for key, value in table.items():
        path = (*under, key)
        field = model.model_fields.get(key)
        section = _section(field) if field is not None else None
        if field is None:
            hint = _nearest(".".join(path), [".".join(p) for p, f in known.items() if not is_hidden(f)])
            problems.append(f"`{'.'.join(path)}` in {config} is no setting: {hint}")
        elif section is None:
            yield path, value
        elif isinstance(value, dict):
            yield from _file_values(section, value, config, known, problems, path)
        else:
            problems.append(f"`{'.'.join(path)}` in {config} is a table of settings: write it as [{'.'.join(path)}].")


def _environment_values(
    known: Mapping[SettingPath, FieldInfo], env: Mapping[str, str], ignore: frozenset[str], problems: list[str]
) -> Iterator[tuple[SettingPath, Any]]:
    by_name = {variable(path): path for path in known}
    offered = [name for name, path in by_name.items() if not is_hidden(known[path])]
    for name in sorted(env):
        if not name.startswith(PREFIX) or name in ignore:
            continue
        path = by_name.get(name)
        if path is None:
            # never the value: a password put under a wrong name would end in the log
            problems.append(f"{name} in the environment is no setting: {_nearest(name, offered)}")
        elif env[name].strip():
            try:
                yield path, _from_text(known[path], env[name].strip())
            except ValueError as error:
                problems.append(f"{name} in the environment: {error}")


def _from_text(field: FieldInfo, text: str) -> Any:
    origin = get_origin(field.annotation)
    if origin is dict:
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f'it is not JSON ({error}). Write a JSON object, for example {{"name":"value"}}.'
            ) from None
        if not isinstance(value, dict):
            raise ValueError('it is not a JSON object. Write one, for example {"name":"value"}.')
        return value
    if origin is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return text


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not close:
        last = name.replace(".", "__").split("__")[-1].lower()
        close = [n for n in names if n.replace(".", "__").split("__")[-1].lower() == last][:1]
    return f"did you mean {close[0]}?" if close else "remove it; docs/configuration.md has all names."


def _sentences(
    error: ValidationError, known: Mapping[SettingPath, FieldInfo], origins: Mapping[SettingPath, str]
) -> Iterator[str]:
    for item in error.errors(include_url=False):
        location = tuple(str(part) for part in item["loc"])
        path = next((location[:n] for n in range(len(location), 0, -1) if location[:n] in known), None)
        what = item["msg"].removeprefix("Value error, ")
        if path is None:  # the check of a whole section names its settings itself
            section = variable(location) + "__*" if location else "The settings"
            yield f"{section}: {what}"
            continue
        inner = "".join(f"[{part}]" for part in location[len(path) :])
        place = origins.get(path, "the defaults")
        if item["type"] == "value_error":
            yield f"{variable(path)}{inner} (from {place}): {what}"
        else:
            meaning = known[path].description or ""
            what = what[0].lower() + what[1:]
            yield f"{variable(path)}{inner} (from {place}): {str(item['input'])[:60]!r} is refused, {what}. {meaning}"


def _refusal(problems: list[str]) -> ConfigurationError:
    if len(problems) == 1:
        return ConfigurationError(problems[0])
    lines = "\n".join(f"- {problem}" for problem in problems)
    return ConfigurationError(f"{len(problems)} settings are refused:\n{lines}")
