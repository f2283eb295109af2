"""The schemas of `protocol/` against configurations, topologies and administrators' requests."""

import json
import re
from pathlib import Path
from typing import Any

import protocol
import pytest
from protocol import exchanges
from support import Server, expect_sentence, run

SCHEMAS = {path.name: json.loads(path.read_text()) for path in protocol.DIRECTORY.glob("*.schema.json")}
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "null": type(None),
}


def is_valid(value: Any, schema: dict[str, Any], file: str) -> bool:
    """What these schemas use of JSON Schema 2020-12; any other keyword is an error."""

    def every(check: Any, items: Any) -> bool:
        return all(check(item) for item in items)

    def sub(part: dict[str, Any], item: Any = value) -> bool:
        return is_valid(item, part, file)

    def one(keyword: str, rule: Any) -> bool:
        match keyword:
            case "$schema" | "$defs" | "title" | "description" | "default" | "then":
                return True
            case "$ref":
                name, _, path = rule.partition("#/")
                target = SCHEMAS[name or file]
                for step in path.split("/"):
                    target = target[step]
                return is_valid(value, target, name or file)
            case "type":
                return isinstance(value, TYPES[rule]) and (rule == "boolean" or type(value) is not bool)
            case "enum":
                return value in rule
            case "const":
                return bool(value == rule)
            case "anyOf":
                return any(sub(part) for part in rule)
            case "if":
                return not sub(rule) or sub(schema["then"])
            case "minimum" | "maximum":
                return not isinstance(value, int) or (value >= rule if keyword == "minimum" else value <= rule)
            case "pattern":
                return not isinstance(value, str) or re.search(rule, value) is not None
            case "minLength" | "maxLength":
                return not isinstance(value, str) or (
                    len(value) >= rule if keyword == "minLength" else len(value) <= rule
                )
            case "minItems" | "maxItems":
                return not isinstance(value, list) or (
                    len(value) >= rule if keyword == "minItems" else len(value) <= rule
                )
            case "uniqueItems":
                return not isinstance(value, list) or len({json.dumps(i) for i in value}) == len(value)
            case "items":
                return not isinstance(value, list) or every(lambda item: sub(rule, item), value)
            case "prefixItems":
                return not isinstance(value, list) or all(map(sub, rule, value))
            case "required":
                return not isinstance(value, dict) or every(lambda name: name in value, rule)
            case "dependentRequired":
                return not isinstance(value, dict) or all(
                    set(needs) <= set(value) for name, needs in rule.items() if name in value
                )
            case "properties":
                return not isinstance(value, dict) or all(
                    sub(part, value[name]) for name, part in rule.items() if name in value
                )
            case "additionalProperties":
                if not isinstance(value, dict):
                    return True
                rest = [item for name, item in value.items() if name not in schema.get("properties", {})]
                return not rest if rule is False else every(lambda item: sub(rule, item), rest)
        raise AssertionError(f"{file}: {keyword} is unknown here")

    return all(one(keyword, rule) for keyword, rule in schema.items())


def is_configuration(value: Any) -> bool:
    return is_valid(value, SCHEMAS["configuration.schema.json"], "configuration.schema.json")


def device(**fields: Any) -> dict[str, Any]:
    return {"groups": [{"id": 7, "devices": [{"address": "0000:01:00.0", **fields}]}]}


def group(**fields: Any) -> dict[str, Any]:
    return {"groups": [{"id": 7, "devices": [], **fields}]}


GOOD = {
    "nothing": {},
    "no groups": {"groups": []},
    "a group without devices": group(),
    "an owner's name": group(owner="root"),
    "an owner's number": group(owner=0, mode="0660"),
    "apertures": {"limits": {"apertures": [[0, "0xfedfffff"], ["0xfef00000", 281474976710655]]}},
    "a device by name": device(),
    "a device without a driver": device(model="edu", driver=None),
    "a device with options": device(model="edu", options={"dma_mask": "0xffffffff"}),
    "a foreign driver": device(driver="e1000"),
    "drivers": {"iommu_drivers": ["type1"]},
    "a group without an IOMMU": {**group(iommu="none"), "iommu_drivers": ["noiommu"]},
    "a group with an IOMMU": group(iommu=None),
    "locked memory": {"limits": {"locked_memory": 4096}},
    "limits": {"limits": {"connections": 10, "message_descriptors": 253}},
}
BAD = {
    "an unknown member": {"group": []},
    "groups that are an object": {"groups": {}},
    "a group without an id": {"groups": [{"devices": []}]},
    "an IOMMU that isn't known": group(iommu="type1"),
    "physical memory by a relative path": {"physical_memory": "memory", "iommu_drivers": ["noiommu"]},
    "locked memory below a page": {"limits": {"locked_memory": 4095}},
    "a group without a list of devices": {"groups": [{"id": 1}]},
    "an id that is negative": {"groups": [{"id": -1, "devices": []}]},
    "an id beyond 32 bits": {"groups": [{"id": 1 << 32, "devices": []}]},
    "an owner that is nobody in particular": group(owner=0xFFFFFFFF),
    "a mode that is a number": group(mode=600),
    "a mode that isn't octal": group(mode="0680"),
    "no aperture": {"limits": {"apertures": []}},
    "half an aperture": {"limits": {"apertures": [[0]]}},
    "an aperture that isn't hexadecimal": {"limits": {"apertures": [[0, "0xzz"]]}},
    "a device without an address": {"groups": [{"id": 7, "devices": [{}]}]},
    "an address in capitals": device(address="0000:0A:00.0"),
    "a device number of 32": device(address="0000:01:20.0"),
    "an unknown model": device(model="ne2000"),
    "vfio-pci without a model": device(driver="vfio-pci"),
    "a driver without a name": device(driver=""),
    "options without a model": device(options={}),
    "an option that is a list": device(model="edu", options={"dma_mask": []}),
    "a relative socket": device(model="edu", socket="edu.sock"),
    "a long socket": device(model="edu", socket="/" + "x" * 107),
    "an unknown IOMMU driver": {"iommu_drivers": ["type2"]},
    "an IOMMU driver twice": {"iommu_drivers": ["type1", "type1"]},
    "a limit of nothing": {"limits": {"connections": 0}},
    "too many descriptors": {"limits": {"message_descriptors": 254}},
    "an unknown limit": {"limits": {"cpus": 1}},
}


@pytest.mark.parametrize("what", GOOD)
def test_a_configuration_that_the_schema_allows_is_served(tmp_path: Path, what: str) -> None:
    assert is_configuration(GOOD[what])
    config = tmp_path / "config.json"
    config.write_text(json.dumps(GOOD[what]))
    server = Server(tmp_path / "vfiod", "--config", str(config))
    try:
        with server.connect() as root:
            assert is_topology(root.topology())
        server.stop()
    finally:
        server.kill()


@pytest.mark.parametrize("what", BAD)
def test_a_configuration_that_the_schema_forbids_is_refused(tmp_path: Path, what: str) -> None:
    assert not is_configuration(BAD[what])
    config = tmp_path / "config.json"
    config.write_text(json.dumps(BAD[what]))
    result = run("--directory", str(tmp_path / "vfiod"), "--config", str(config))
    expect_sentence(result, "config.json")


def test_the_readmes_configuration_is_one() -> None:
    text = (protocol.DIRECTORY.parent / "README.md").read_text()
    blocks = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        assert is_configuration(json.loads(block)), block


def test_the_limits_defaults_are_the_facts() -> None:
    limits = SCHEMAS["configuration.schema.json"]["$defs"]["limits"]["properties"]
    defaults = {
        name: limit["default"]
        for name, limit in limits.items()
        if name not in ("apertures", "locked_memory")
    }
    assert defaults == {item["name"]: item["value"] for item in protocol.FACTS["limits"]}


def is_topology(value: Any) -> bool:
    return is_valid(value, SCHEMAS["topology.schema.json"], "topology.schema.json")


def test_the_topology_is_as_its_schema_says(server: Server) -> None:
    with server.connect() as root:
        topology = root.topology()
    assert is_topology(topology)
    devices = [
        {"group": group["id"], **{name: device[name] for name in ("address", "model", "driver")}}
        for group in topology["groups"]
        for device in group["devices"]
    ]
    assert devices == protocol.FACTS["built_in_topology"]
    for group_ in topology["groups"]:
        for name in ("id", "viable", "devices"):
            assert not is_topology({"groups": [{k: v for k, v in group_.items() if k != name}]})


def test_a_servers_descriptions_of_its_devices_are_as_their_schema_says(server: Server) -> None:
    file = "device.schema.json"
    with server.connect() as root:
        for group in root.topology()["groups"]:
            for device in group["devices"]:
                if device["driver"] == "vfio-pci":
                    assert is_valid(root.device(device["address"]), SCHEMAS[file], file)
    assert not is_valid({"regions": [], "interrupts": []}, SCHEMAS[file], file)
    assert not is_valid({"regions": [], "interrupts": [], "config": "0"}, SCHEMAS[file], file)


def is_request(name: str, text: str) -> bool:
    file = "administration.schema.json"
    return is_valid(json.loads(text), SCHEMAS[file]["$defs"][name], file)


def test_requests_of_an_administrator_are_as_their_schema_says() -> None:
    commands = set(SCHEMAS["administration.schema.json"]["$defs"]) & set(protocol.COMMANDS)
    assert len(commands) == 4
    seen = set()
    for step in exchanges():
        if step.get("command") in commands and "request" in step:
            assert is_request(step["command"], step["request"]["request"]), step
            seen.add(step["command"])
    assert seen == commands


def test_the_specifications_requests_of_an_administrator_are_as_their_schema_says() -> None:
    text = (protocol.DIRECTORY / "README.md").read_text()
    examples = re.findall(r"^    ([A-Z]+_[A-Z]+) +(\{.*\})$", text, re.MULTILINE)
    assert len(examples) == 4
    for name, request in examples:
        assert is_request(name, request), request


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("ADD_DEVICE", {"device": {"address": "0000:01:00.0"}}),
        ("ADD_DEVICE", {"group": "26", "device": {"address": "0000:01:00.0"}}),
        ("ADD_DEVICE", {"group": 26, "device": {"address": "somewhere"}}),
        ("REMOVE_DEVICE", {}),
        ("REMOVE_DEVICE", {"name": "0000:01:00.0", "timeout": -1}),
        ("REMOVE_DEVICE", {"name": "0000:01:00.0", "timeout": 1.5}),
        ("BIND_DRIVER", {"name": "0000:01:00.0"}),
        ("BIND_DRIVER", {"name": "0000:01:00.0", "driver": "e1000", "force": 1}),
        ("UNBIND_DRIVER", {"driver": "e1000"}),
        ("UNBIND_DRIVER", {"name": "0000:01:00.0", "why": "because"}),
    ],
)
def test_the_schema_forbids_what_is_no_request(name: str, request_: dict[str, Any]) -> None:
    assert not is_request(name, json.dumps(request_))


def test_a_validator_of_the_standard_agrees() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    registry = pytest.importorskip("referencing").Registry().with_resources(
        (name, pytest.importorskip("referencing").Resource.from_contents(schema))
        for name, schema in SCHEMAS.items()
    )
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    configuration = jsonschema.Draft202012Validator(
        {"$ref": "configuration.schema.json"}, registry=registry
    )
    for what, good in GOOD.items():
        assert configuration.is_valid(good), what
    for what, bad in BAD.items():
        assert not configuration.is_valid(bad), what
