"""Writes a CycloneDX list of the packages that this one needs, as JSON on stdout: `make release`.

https://cyclonedx.org/docs/1.6/json/: names, versions, licenses and what needs what, as installed.
"""

import json
import re
import uuid
from importlib.metadata import Distribution, distribution
from typing import Any

__all__ = ["bill_of_materials"]

PROJECT = "gradient-flow-analyzer"
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)[^;]*(?:;(.*))?")


def _needs(package: Distribution) -> list[Distribution]:
    """The installed packages that one needs without extras; markers that do not hold have none."""
    found = []
    for line in package.requires or ():
        match = _REQUIREMENT.match(line)
        if match is None or "extra ==" in (match[2] or ""):
            continue
        try:
            found.append(distribution(match[1]))
        except ModuleNotFoundError:  # for another system or version of Python
            continue
    return found


def _name(package: Distribution) -> str:
    return re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()


def _reference(package: Distribution) -> str:
    return f"pkg:pypi/{_name(package)}@{package.version.partition('+')[0]}"


def _component(package: Distribution) -> dict[str, Any]:
    told = package.metadata
    license_ = told.get("License-Expression") or told.get("License") or ""
    words = license_.strip().splitlines()[:1] or [
        line.rpartition(" :: ")[2]
        for line in told.get_all("Classifier") or ()
        if line.startswith("License ::")
    ]
    component = {
        "type": "library",
        "bom-ref": _reference(package),
        "name": told["Name"],
        "version": package.version,
        "purl": _reference(package),
    }
    return component | ({"licenses": [{"license": {"name": words[0]}}]} if words else {})


def bill_of_materials(project: str = PROJECT) -> dict[str, Any]:
    """Return the list of a project, its packages by name; equal packages give an equal list."""
    root = distribution(project)
    known, waiting = {_reference(root): root}, [root]
    needs: dict[str, list[str]] = {}
    while waiting:
        package = waiting.pop()
        others = _needs(package)
        needs[_reference(package)] = sorted({_reference(one) for one in others})
        for one in others:
            if _reference(one) not in known:
                known[_reference(one)] = one
                waiting.append(one)
    edges = [{"ref": ref, "dependsOn": needs[ref]} for ref in sorted(needs)]
    listed = [_component(known[ref]) for ref in sorted(known) if known[ref] is not root]
    digest = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([listed, edges]))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{digest}",
        "version": 1,
        "metadata": {"component": _component(root) | {"type": "application"}},
        "components": listed,
        "dependencies": edges,
    }


if __name__ == "__main__":
    print(json.dumps(bill_of_materials(), indent=1))
