"""Makes the JSON schemas beside it from CustomResourceDefinitions: `python trim.py CRD.yaml ORIGIN > FILE.json`.

Kept is what validates: descriptions and Kubernetes' own extensions go, and an object that lists its fields refuses all
others, as an API server with strict field validation does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml


def strict(node: Any) -> Any:
    """A schema without prose, and without room for fields that it does not list."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key in ("properties", "patternProperties"):
            out[key] = {name: strict(part) for name, part in value.items()}
        elif key not in ("description", "default", "example") and not key.startswith("x-kubernetes-"):
            out[key] = strict(value)
    if node.get("x-kubernetes-int-or-string"):
        out.pop("anyOf", None)
        out["type"] = ["integer", "string"]
    if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
        out.setdefault("additionalProperties", False)
    if out.get("format") in ("int32", "int64", "double"):
        del out["format"]
    return out


def of(crd: dict[str, Any]) -> dict[str, Any]:
    """apiVersion -> schema of each version that is served."""
    group, kind = crd["spec"]["group"], crd["spec"]["names"]["kind"]
    schemas = {}
    for version in crd["spec"]["versions"]:
        if version["served"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            api = f"{group}/{version['name']}"
            schema["properties"].pop("status", None)
            schema["properties"] |= {
                "apiVersion": {"const": api},
                "kind": {"const": kind},
                "metadata": {"type": "object", "required": ["name"]},
            }
            schema["required"] = sorted({*schema.get("required", ()), "apiVersion", "kind", "metadata", "spec"})
            schemas[api] = schema
    return schemas


if __name__ == "__main__":
    crd = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    origin = {"origin": sys.argv[2], "licence": "Apache-2.0", "kind": crd["spec"]["names"]["kind"]}
    print(json.dumps({**origin, "schemas": of(crd)}, separators=(",", ":")))
