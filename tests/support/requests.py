"""What a browser asks the dashboard for, without one."""

from typing import Any

from flask.testing import FlaskClient

from analyzer.dashboard.ids import Id

__all__ = ["LOCAL", "route"]

LOCAL = {"Host": "127.0.0.1:8050"}


def route(client: FlaskClient, search: str, path: str = "/", **headers: str) -> Any:
    """Ask for the content of a page as the browser does."""
    spec = client.get("/_dash-dependencies", headers=LOCAL).get_json()
    output = next(s["output"] for s in spec if s["output"].startswith(f"..{Id.MAIN}.children"))
    outputs = []
    for part in output.strip(".").split("..."):
        name, _, prop = part.rpartition(".")
        outputs.append({"id": name, "property": prop.partition("@")[0]})
    body = {
        "output": output,
        "outputs": outputs,
        "inputs": [
            {"id": Id.URL, "property": "pathname", "value": path},
            {"id": Id.URL, "property": "search", "value": search},
        ],
        "changedPropIds": [f"{Id.URL}.search"],
    }
    return client.post("/_dash-update-component", json=body, headers=LOCAL | headers)
