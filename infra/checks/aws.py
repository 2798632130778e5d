"""EC2: what `ray up` would send to RunInstances, and the IAM policies, against botocore's models.

botocore carries a description of each service; nothing here needs a network or credentials.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import botocore.session
from botocore import xform_name
from botocore.exceptions import UnknownServiceError
from botocore.model import ServiceModel, Shape
from botocore.validate import ParamValidator

from infra.checks.files import AWS, Fault, Files, document, policies

_ADDED = {"MinCount": 1, "MaxCount": 1, "KeyName": "made-by-ray"}
"""What Ray adds to a node_config before it calls RunInstances."""
_NOT_OPERATIONS = ("iam:PassRole",)
"""Permissions that are no calls."""
_CLI_ONLY = {("ecr", "get-login-password"): set[str]()}
"""Commands of the AWS CLI that are no operations of the service, and their options."""
_CLI_OPTIONS = {"region", "profile", "query", "output", "no-cli-pager"}


@cache
def service(name: str) -> ServiceModel:
    """botocore's description of a service."""
    return botocore.session.Session().get_service_model(name)


def node_configs(files: Files) -> list[Fault]:
    """Every node_config is a valid request: names, types and, beyond botocore's check, choices."""
    shape = service("ec2").operation_model("RunInstances").input_shape
    faults = []
    for name, node_type in document(files, AWS)["available_node_types"].items():
        request = {**node_type["node_config"], **_ADDED}
        # Ray's own key: it chooses one of them for each request.
        request.pop("SubnetIds", None)
        report = ParamValidator().validate(request, shape).generate_report()
        problems = [*report.splitlines(), *_wrong_choices(request, shape, "node_config")]
        faults += [
            Fault(
                what=f"{AWS} {name}",
                got=problem[:200],
                expected="what RunInstances of EC2 takes",
                remedy="correct it: the machine would not start",
            )
            for problem in problems
        ]
    return faults


def _wrong_choices(value: Any, shape: Shape, place: str) -> Iterator[str]:
    if shape.type_name == "structure" and isinstance(value, dict):
        for key, inner in value.items():
            if key in shape.members:
                yield from _wrong_choices(inner, shape.members[key], f"{place}.{key}")
    elif shape.type_name == "list" and isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _wrong_choices(inner, shape.member, f"{place}[{index}]")
    elif getattr(shape, "enum", None) and value not in shape.enum:
        # Instance types are many, and more than botocore knows.
        choices = ", ".join(shape.enum[:6])
        yield f"{place} = {value}, not one of {choices} ({len(shape.enum)} choices)"


def iam_policies(files: Files) -> list[Fault]:
    """Policies grant named calls, which exist; only looking is granted on everything."""
    faults = []
    for path in policies(files):
        for statement in json.loads(files[path])["Statement"]:
            what = f"{path} {statement.get('Sid', 'a statement')}"
            actions = statement["Action"]
            for action in [actions] if isinstance(actions, str) else actions:
                if "*" in action:
                    faults.append(
                        Fault(
                            what=what,
                            got=f"the action {action}",
                            expected="actions by name",
                            remedy="list those that are needed",
                        )
                    )
                elif not _exists(action):
                    faults.append(
                        Fault(
                            what=what,
                            got=f"the action {action}",
                            expected="a call that the service has",
                            remedy="correct its name",
                        )
                    )
    return faults


def _exists(action: str) -> bool:
    # Permissions of S3 have names of their own (s3:ListBucket allows the call ListObjectsV2).
    if action.startswith("s3:") or action in _NOT_OPERATIONS:
        return True
    name, _, operation = action.partition(":")
    try:
        return operation in service(name).operation_names
    except UnknownServiceError:
        return False


def cli_problem(words: list[str]) -> str:
    """What is wrong with the words after `aws`; empty if nothing is."""
    name, command, *rest = [*words, "", ""]
    given = {word[2:].partition("=")[0] for word in rest if word.startswith("--")}
    if (name, command) in _CLI_ONLY:
        unknown = given - _CLI_OPTIONS - _CLI_ONLY[name, command]
        return f"unknown options {', '.join(sorted(unknown))}" if unknown else ""
    try:
        model = service(name)
    except UnknownServiceError:
        return f"unknown service {name or '(none)'}"
    names = {xform_name(each, "-"): each for each in model.operation_names}
    if command not in names:
        return f"unknown command {name} {command or '(none)'}"
    shape = model.operation_model(names[command]).input_shape
    members = {xform_name(each, "-") for each in (shape.members if shape else ())}
    required = {xform_name(each, "-") for each in (shape.required_members if shape else ())}
    if unknown := given - members - _CLI_OPTIONS:
        return f"unknown options {', '.join(sorted(unknown))}"
    if missing := required - given:
        return f"missing options {', '.join(sorted(missing))}"
    return ""
