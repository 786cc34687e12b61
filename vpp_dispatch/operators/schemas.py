"""`schemas/` made from the models: JSON Schema 2020-12 per public message and version, and the lock of the released.

A released version never changes: its hash stands in `schemas/released.lock`, and a change needs a new version.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from vpp_dispatch.operators.answer import OutcomesV1, ReportV1, ResponseV1
from vpp_dispatch.operators.device import DeviceV1
from vpp_dispatch.operators.signal import SignalV1
from vpp_dispatch.operators.wire import Input, Wire

PUBLIC: dict[str, type[Wire]] = {
    "signal": SignalV1,
    "response": ResponseV1,
    "report": ReportV1,
    "outcomes": OutcomesV1,
    "device": DeviceV1,
}
"""The public messages of version 1 by the name of their schema."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DIRECTORY = Path(__file__).resolve().parents[2] / "schemas"
LOCK = "released.lock"


class _Schema(GenerateJsonSchema):
    """Without titles that only repeat the field's name, and with no way around the pattern of a table's keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        made = super().dict_schema(schema)
        if "patternProperties" in made:
            made["additionalProperties"] = False
        return made


class _InputSchema(_Schema):
    """An optional field of an input is absent, never null."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        if made.get("default", ...) is None:
            del made["default"]
        return made


def schema_of(name: str, model: type[Wire]) -> dict[str, Any]:
    """The JSON Schema of a public message, version 1."""
    generator = _InputSchema if issubclass(model, Input) else _Schema
    made = model.model_json_schema(schema_generator=generator)
    return {"$schema": DIALECT, "$id": f"urn:vpp-dispatch:schema:{name}:v1", **made}


def files() -> dict[str, bytes]:
    """Path below `schemas/` to content, for every public message."""
    return {
        f"{name}/v1.json": (json.dumps(schema_of(name, model), indent=2, ensure_ascii=False) + "\n").encode()
        for name, model in PUBLIC.items()
    }


def released(directory: Path = DIRECTORY) -> dict[str, str]:
    """Path to SHA-256 of each released version, from the lock; empty where there is none."""
    lock = directory / LOCK
    if not lock.exists():
        return {}
    lines = [line.split() for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    return {path: digest for digest, path in lines}


def problems(directory: Path = DIRECTORY) -> list[str]:
    """Sentences on what stands in `directory` and should not, or the other way round; empty when all is well."""
    made = files()
    found: list[str] = []
    for path, content in made.items():
        target = directory / path
        if not target.exists() or target.read_bytes() != content:
            found.append(
                f"schemas/{path} is not what the models say: run python -m vpp_dispatch.operators.messages --write."
            )
    for path, digest in released(directory).items():
        target = directory / path
        if not target.exists() or hashlib.sha256(target.read_bytes()).hexdigest() != digest:
            found.append(f"schemas/{path} is released and has changed: put it back, and make a new version of it.")
    return found


def write(directory: Path = DIRECTORY) -> list[str]:
    """Writes what differs; a released version is left alone. Returns sentences on what could not be written."""
    locked = released(directory)
    refused: list[str] = []
    for path, content in files().items():
        if path in locked and hashlib.sha256(content).hexdigest() != locked[path]:
            refused.append(f"schemas/{path} is released and the models say something else: make a new version of it.")
            continue
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return refused


def release(path: str, directory: Path = DIRECTORY) -> list[str]:
    """Puts a version such as `signal/v1.json` into the lock, once; returns sentences on why not."""
    locked = released(directory)
    target = directory / path
    if not target.exists():
        return [f"schemas/{path} does not exist: run --write first."]
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if locked.get(path, digest) != digest:
        return [f"schemas/{path} is released already, with other content: make a new version of it."]
    lines = [f"{known}  {name}" for name, known in sorted({**locked, path: digest}.items())]
    head = "# SHA-256 of each released version. Lines are added by --release and never changed."
    (directory / LOCK).write_text("\n".join([head, *lines]) + "\n")
    return []


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 1 with a sentence on stderr where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m vpp_dispatch.operators.messages", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write the schemas that the models say")
    what.add_argument("--check", action="store_true", help="compare the schemas with the models and the lock")
    what.add_argument("--release", metavar="PATH", help="put a version into the lock, such as signal/v1.json")
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="where the schemas are")
    options = parser.parse_args(argv)
    if not options.directory.is_dir():
        found = [f"There is no directory {options.directory}: run this in the project's checkout."]
    elif options.write:
        found = write(options.directory)
    elif options.check:
        found = problems(options.directory)
    else:
        found = release(options.release, options.directory)
    for sentence in found:
        print(sentence, file=sys.stderr)
    return 1 if found else 0
